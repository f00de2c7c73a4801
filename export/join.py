"""A second encoder for a published checkpoint: other ids in, the same latents out, for the same adapters.

    RUN/best, CHECKPOINT -> CHECKPOINT/encoder-KIND/ (meta.json, encoder.safetensors + .onnx, quantiser's graphs)

The folder is a checkpoint whose adapters lie in the one above it. Its fingerprint begins with the first four bytes of
that encoder's, which frames carry as their model id: a frame of either is read with the same adapters. The rest of the
fingerprint is its own. The quantiser belongs to the latents, so it is taken from above. Needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import ModelError
from ..core.files import atomic_folder, atomic_write_json
from ..core.joined import joined_folder
from .publish import round_weights, trace_and_compare

if TYPE_CHECKING:
    from ..training.config import Config

ENCODER_OPTIONS: Final = (
    "encoder_type",
    "encoder_layers",
    "byte_width",
    "byte_layers",
    "byte_lexicon",
    "span_type",
    "max_tokens",
)
"""What the two encoders may differ in; everything else is as in the checkpoint that they share."""
SAME: Final = ("d_z", "encoder_llm", "latent_len", "fsq_profile", "quantiser_type", "fsq_hidden", "places")


def join(source: Path, base: Path, about: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Publish the encoder of ``source`` into ``base``; returns its folder.

    Args:
        source: checkpoint folder of a run whose encoder learned the latents of ``base``'s.
        base: published checkpoint.
        about: entry ``about`` of the second encoder's ``meta.json``.
        overwrite: replace an encoder of that kind that was joined before.

    Raises:
        ModelError: 3101, 3102, 3204-3224 from either checkpoint; 3210 encoders of one kind, or whose latents differ in
            size or in their quantiser.
        BundleError: 4010 a graph computes something else than its module.
        EnvironmentFault: 5008 there is one of this kind.
    """
    import torch

    from ..training.building import open_checkpoint
    from ..training.checkpoint import (
        config_of,
        encoder_file,
        encoder_fits,
        load_tensors,
        read_meta,
        write,
    )
    from ..training.model import LatentModel
    from ..training.warm import QUANTISER

    above = read_meta(base)
    shared, own = config_of(above, str(base)), config_of(read_meta(source), str(source))
    _check(shared, own, source)
    opened, meta = open_checkpoint(source, "cpu")
    encoder_fits(above, opened.source, base)
    # Stages of the encoder above are not this one's: an encoder of bytes cannot even have some of them.
    kept = {name: getattr(own, name) for name in ENCODER_OPTIONS}
    config = replace(shared, **kept, init="", teacher=base.name, stage=(), bundle="default")
    model = LatentModel(config, opened.encoder, {}, [], opened.source)
    if model.quantiser is not None:
        found = load_tensors(base / encoder_file())
        codes = {n.removeprefix(QUANTISER): t for n, t in found.items() if n.startswith(QUANTISER)}
        model.quantiser.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in codes.items()})
    round_weights(model)
    with atomic_folder(joined_folder(base, config.encoder_type), overwrite=overwrite) as folder:
        written = write(folder, model, torch.float16, step=meta.get("step"), about=dict(about))
        written["encoder"]["fingerprint"] = above["encoder"]["fingerprint"][:8] + written["encoder"]["fingerprint"][8:]
        written |= {"joined": True, "adapters": above["adapters"], "features": above["features"]}
        atomic_write_json(folder / "meta.json", written)
        trace_and_compare(model, folder)
    return joined_folder(base, config.encoder_type)


def _check(shared: Config, own: Config, source: Path) -> None:
    if own.encoder_type == shared.encoder_type:
        raise ModelError(
            3210,
            f"both encoders are {own.encoder_type}",
            where=str(source),
            expected="expected an encoder of another kind",
            fix="publish it as a checkpoint of its own",
        )
    for name in SAME:
        wanted, came = getattr(shared, name), getattr(own, name)
        if wanted != came:
            raise ModelError(
                3210,
                f"encoder with another {name}",
                where=str(source),
                expected=f"expected {wanted!r}, got {came!r}",
                fix="train it with this checkpoint as its teacher",
            )
