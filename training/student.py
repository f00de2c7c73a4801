"""A byte encoder's way into a run: adapters and quantiser from its teacher's checkpoint, and the teacher itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from .bundles import needs_lesson, weights
from .checkpoint import config_of, encoder_file, encoder_fits, load_module, load_tensors, read_meta
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .model import LatentModel, build_encoder
from .start import set_embedding
from .warm import QUANTISER, put_adapters


def start_student(model: LatentModel, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give a new byte encoder its teacher's adapters and quantiser; returns the tasks that each knows.

    The encoder itself keeps its random start: it has nothing in common with the teacher but what it shall say.

    Raises:
        ModelError: 3101, 3102 the teacher is for other models; 3204, 3220-3223 as for a checkpoint; 3210 its latents
            are of another width, it is a byte encoder itself, or it has no quantiser where one is asked for.
    """
    folder = Path(model.config.teacher)
    meta, config = _read(model, folder)
    if model.quantiser is not None:
        found = load_tensors(folder / encoder_file())
        own = {n.removeprefix(QUANTISER): t.float() for n, t in found.items() if n.startswith(QUANTISER)}
        wanted, came = ((c.quantiser_type, c.fsq_profile, c.fsq_hidden) for c in (model.config, config))
        if wanted != came:
            raise ModelError(
                3210,
                "the teacher has another quantiser",
                where=str(folder),
                expected=f"expected quantiser_type, fsq_profile and fsq_hidden {wanted}, got {came}",
                fix="train without one first, then add it with init",
            )
        model.quantiser.load_state_dict(own)
    return put_adapters(model, meta, folder, texts)


def teach(model: LatentModel) -> None:
    """Load the teacher where a stage of the run learns latents from it; nothing else is done otherwise.

    Raises:
        ModelError: as ``start_student``.
    """
    config = model.config
    if not any(needs_lesson(weights(s.stage.bundle or config.bundle, config.kd_weight)) for s in config.spans()):
        return
    folder = Path(config.teacher)
    _, own = _read(model, folder)
    teacher = build_encoder(own)
    assert isinstance(teacher, EncoderFromEmbedLayer)
    load_module(teacher, folder / encoder_file())
    set_embedding(teacher, model.source.embedding.cpu())
    teacher.low_precision = config.precision == "bf16"
    model.learn_from(teacher.to(next(model.encoder.parameters()).device))


def _read(model: LatentModel, folder: Path) -> tuple[dict[str, Any], Config]:
    meta = read_meta(folder)
    encoder_fits(meta, model.source, folder)
    config = config_of(meta, str(folder))
    for name, wanted, came in (
        ("encoder_type", "embed_layer", config.encoder_type),
        ("d_z", model.config.d_z, config.d_z),
    ):
        if wanted != came:
            raise ModelError(
                3210, f"a teacher of another {name}", where=str(folder), expected=f"expected {wanted}, got {came}"
            )
    return meta, config
