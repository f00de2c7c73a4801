"""A byte encoder's way into a run: its teacher's adapters, quantiser and words, and the teacher itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ModelError
from .bundles import FOLLOW_TERM, needs_lesson, weights
from .checkpoint import config_of, encoder_file, encoder_fits, load_module, load_tensors, read_meta
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .encoder_bytes import ByteLevelEncoder
from .lexicon import start_lexicon
from .model import LatentModel, build_encoder
from .start import set_embedding, token_keys
from .vocabulary import choose_tokens, token_texts
from .warm import QUANTISER, put_adapters


def start_student(model: LatentModel, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give a new byte encoder its teacher's adapters, quantiser and words; returns the tasks that each knows.

    Its layers keep their random start: they have nothing in common with the teacher's.

    Raises:
        ModelError: 3101, 3102 the teacher is for other models; 3204, 3220-3223 as for a checkpoint; 3210 its latents
            are of another width, it is a byte encoder itself, it has no quantiser where one is asked for, or no stage
            follows its head where texts are cut by one.
    """
    folder = Path(model.config.teacher)
    meta, config = _read(model, folder)
    used = {span.stage.bundle or model.config.bundle for span in model.config.spans()}
    if model.config.span_type == "learned" and FOLLOW_TERM not in used:
        raise ModelError(
            3210,
            "a head that nothing teaches",
            expected=f"expected a stage with the bundle {FOLLOW_TERM} where span_type is learned, got none",
        )
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
    _start_words(model, _open(model, config, folder), texts)
    return put_adapters(model, meta, folder, texts)


def teach(model: LatentModel) -> None:
    """Load the teacher where a stage of the run learns latents from it; nothing else is done otherwise.

    Raises:
        ModelError: as ``start_student``; 3210 also where the student has a head and the teacher none.
    """
    config = model.config
    if not any(needs_lesson(weights(s.stage.bundle or config.bundle, config.kd_weight)) for s in config.spans()):
        return
    folder = Path(config.teacher)
    _, own = _read(model, folder)
    if config.span_type == "learned" and own.span_type != "learned":
        raise ModelError(
            3210,
            "a teacher without a head that says what is wanted",
            where=str(folder),
            expected=f"expected span_type learned, got {own.span_type}",
        )
    teacher = _open(model, own, folder)
    teacher.low_precision = config.precision == "bf16"
    model.learn_from(teacher.to(next(model.encoder.parameters()).device))


def _open(model: LatentModel, config: Config, folder: Path) -> EncoderFromEmbedLayer:
    """The teacher, on the CPU."""
    teacher = build_encoder(config)
    assert isinstance(teacher, EncoderFromEmbedLayer)
    load_module(teacher, folder / encoder_file())
    set_embedding(teacher, model.source.embedding.cpu())
    return teacher


def _start_words(model: LatentModel, teacher: EncoderFromEmbedLayer, texts: Sequence[str]) -> None:
    """The lexicon: the teacher's tokens as text, each with the latent and the weight that it alone gives them."""
    encoder, source = model.encoder, model.source
    if not isinstance(encoder, ByteLevelEncoder) or encoder.lexicon is None:
        return
    table = source.embedding.cpu()
    pieces = token_texts(source.tokenizer, len(table))
    chosen = choose_tokens(source.tokenizer, texts, pieces, len(encoder.lexicon.keys))
    strings = [pieces[i].encode() for i in chosen.tolist()]
    start_lexicon(encoder.lexicon, strings, token_keys(teacher, table[chosen]), teacher.get_buffer("idf")[chosen])
    with torch.no_grad():
        encoder.sharpness.copy_(teacher.sharpness)
        encoder.naming.load_state_dict(teacher.naming.state_dict())


def _read(model: LatentModel, folder: Path) -> tuple[dict[str, Any], Config]:
    meta = read_meta(folder)
    encoder_fits(meta, model.source, folder)
    config = config_of(meta, str(folder))
    for name, wanted, came in (
        ("encoder_type", "embed_layer", config.encoder_type),
        ("d_z", model.config.d_z, config.d_z),
        ("places", model.config.places, config.places),
    ):
        if wanted != came:
            raise ModelError(
                3210, f"a teacher of another {name}", where=str(folder), expected=f"expected {wanted}, got {came}"
            )
    return meta, config
