"""Models put together: modules for a config, weights from the closed-form start or from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ModelError
from .adapter import Adapter, LearnedAdapter, TableAdapter
from .batch import pad
from .checkpoint import config_of, load_into, read_meta
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .features.registry import build
from .fsq import fit_quantiser, start_quantiser
from .llm import LMWrapper
from .model import LatentModel, build_adapter, build_encoder, key
from .start import inverse_document_frequency, set_embedding, start_encoder, start_keys, start_rows, token_keys
from .token_codes import TokenQuantiser, start_token_quantiser
from .vocabulary import choose_tokens, embed_text, only_tokens, token_latents, token_texts

FITTED_TEXTS = 256
"""Texts whose latents a new quantiser is fitted to: 8,192 latents at M=32."""
CALIBRATION_TEXTS = 64
"""Texts whose rows are compared with their embeddings."""


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def build_model(config: Config, device: torch.device) -> LatentModel:
    """Encoder, adapters and frozen LLMs with the LLMs' tables in place; trainable weights not yet set."""
    torch.manual_seed(config.seed)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    llms = [LMWrapper(name, dtype, device) for name in config.llms]
    known = dict(zip(config.llms, llms, strict=True))
    source = known.get(config.encoder_llm) or LMWrapper(config.encoder_llm, dtype, device)
    encoder = build_encoder(config)
    encoder.low_precision = config.precision == "bf16"
    adapters: dict[str, torch.nn.Module] = {}
    for llm in llms:
        table = llm.embedding.cpu()
        adapter = build_adapter(config, table.shape[0], llm.width, foreign(llm, source))
        if isinstance(adapter, LearnedAdapter):
            adapter.set_table(table)
        adapters[key(llm.name)] = adapter
    if isinstance(encoder, EncoderFromEmbedLayer):
        set_embedding(encoder, source.embedding.cpu())
    # Last, so that random starts of the others are the same with and without them.
    features: dict[str, torch.nn.Module] = {key(llm.name): torch.nn.ModuleDict(build(config, llm)) for llm in llms}
    return LatentModel(config, encoder, adapters, llms, source, features).to(device)


def start(model: LatentModel, texts: list[str]) -> None:
    """Set all trainable weights in closed form (see ``start.py``); ``texts`` give the document frequencies."""
    llm, encoder = model.source, model.encoder
    if not isinstance(encoder, EncoderFromEmbedLayer):
        # Its weights and those of its adapters come from a checkpoint: here, what that may not have.
        for each in model.llms:
            start_rows(_adapter(model, each), each, each.embedding.cpu(), model.config.tasks)
        return
    documents = [e.ids for e in llm.tokenizer.encode_batch(texts, add_special_tokens=False)]
    start_encoder(encoder, llm, inverse_document_frequency(documents, encoder.get_buffer("idf").shape[0]))
    begin_quantiser(model, texts)
    for each in model.llms:
        begin_adapter(model, each, texts)


def foreign(llm: LMWrapper, source: LMWrapper) -> bool:
    """Whether the encoder's projection means nothing for this LLM: it has another table than ``source``."""
    shapes = [tuple(each.model.get_input_embeddings().weight.shape) for each in (llm, source)]
    return llm.fingerprint != source.fingerprint and shapes[0] != shapes[1]


def _adapter(model: LatentModel, llm: LMWrapper) -> Adapter | LearnedAdapter:
    found = model.adapter(llm)
    assert isinstance(found, (Adapter, LearnedAdapter))
    return found


def begin_adapter(model: LatentModel, llm: LMWrapper, texts: list[str]) -> None:
    """Set one adapter in closed form for the encoder as it is now, trained or not.

    Args:
        model: with its encoder's weights in place.
        llm: one of its LLMs.
        texts: show which tokens are in use, and what rows to calibrate; without any, the chosen tokens stay.
    """
    adapter, encoder = _adapter(model, llm), model.encoder
    table = llm.embedding.cpu()
    if isinstance(adapter, TableAdapter):
        pieces = token_texts(llm.tokenizer, len(table))
        if model.config.span_type == "learned":
            pieces = only_tokens(model.source.tokenizer, pieces)
        chosen = adapter.entries.cpu()[:, 0]
        if texts:
            chosen = choose_tokens(llm.tokenizer, texts, pieces, adapter.size)
        adapter.set_table(table)
        adapter.set_keys(chosen, token_latents(model, [pieces[i] for i in chosen.tolist()]))
    elif isinstance(adapter, LearnedAdapter):
        if not isinstance(encoder, EncoderFromEmbedLayer):
            raise ModelError(
                3210,
                "no closed-form keys for a byte encoder",
                where=llm.name,
                expected="expected a teacher or init with an adapter for this LLM",
            )
        adapter.set_table(table)
        start_keys(adapter, encoder.get_submodule("projection"), encoder.get_buffer("mean"))
    start_rows(adapter, llm, table, model.config.tasks)
    if adapter.calibration is not None and texts:
        sample = texts[:CALIBRATION_TEXTS]
        z = torch.cat(text_latents(model, sample))
        with torch.no_grad():
            rows = adapter.plain(z.to(adapter.task.weight.device)[None])[0].cpu()
        text, anchor = (
            embed_text(llm, table, some, model.config.window) for some in (sample, [model.config.anchor_text])
        )
        adapter.calibration.fit(rows, text, anchor)


def begin_quantiser(model: LatentModel, texts: list[str]) -> None:
    """Fit the quantiser, if there is one, to the latents that the encoder makes of the first of ``texts`` now."""
    if model.quantiser is None:
        return
    device = next(model.encoder.parameters()).device
    # On the CPU, whose linear algebra is the same everywhere.
    z = torch.cat(text_latents(model, texts[:FITTED_TEXTS]))
    quantiser = model.quantiser.cpu()
    if isinstance(quantiser, TokenQuantiser):
        start_token_quantiser(quantiser, _token_keys(model, texts, len(quantiser.table)), z)
    else:
        start_quantiser(quantiser, z)
        fit_quantiser(quantiser, z, model.config.fsq_fit)
    quantiser.to(device)


@torch.no_grad()
def _token_keys(model: LatentModel, texts: list[str], size: int) -> torch.Tensor:
    """f32 [size,d_z], unit keys of the tokens that ``texts`` use most, by the encoder's own projection."""
    encoder, source = model.encoder, model.source
    if not isinstance(encoder, EncoderFromEmbedLayer):
        raise ModelError(
            3210,
            "no keys of tokens in a byte encoder",
            expected="expected a teacher with a quantiser of tokens",
            fix="start the teacher's run again with init and quantiser_type tokens",
        )
    table = source.embedding.cpu()
    chosen = choose_tokens(source.tokenizer, texts, token_texts(source.tokenizer, len(table)), size)
    return token_keys(encoder, table[chosen])


@torch.no_grad()
def text_latents(model: LatentModel, texts: list[str]) -> list[torch.Tensor]:
    """Latents f32 [N,d_z] of texts, on the CPU, shortest first, without empty slots."""
    device = next(model.encoder.parameters()).device
    ids = sorted((model.ids(t) for t in texts), key=len)
    found: list[torch.Tensor] = []
    for at in range(0, len(ids), 16):
        input_ids, lengths = (t.to(device) for t in pad(ids[at : at + 16]))
        z = model.encode(input_ids, lengths)
        found.append(z[z.any(-1)].cpu())
    return found


def open_checkpoint(
    folder: Path, device: str = "auto", precision: str = "fp32", llms: tuple[str, ...] = ()
) -> tuple[LatentModel, dict[str, Any]]:
    """A trained model, ready to measure, and its metadata.

    Args:
        folder: checkpoint folder, resumable or published.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the frozen LLMs and the encoder's layers here; fp32 is what the exported graphs compute in.
        llms: read with these of its LLMs only; default all.

    Raises:
        ModelError: everything ``load_into`` raises.
    """
    meta = read_meta(folder)
    config = config_of(meta, str(folder))
    # Without its stages: they may name LLMs that are not opened.
    config = replace(config, device=device, precision=precision, llms=llms or config.llms, stage=())
    model = build_model(config, pick_device(device))
    load_into(folder, model)
    return model.eval(), meta


def parameters(model: LatentModel) -> dict[str, int]:
    """Trainable parameters by module."""
    count = {"encoder": sum(p.numel() for p in model.encoder.parameters())}
    for llm in model.llms:
        count[f"adapter/{llm.name}"] = sum(p.numel() for p in model.adapter(llm).parameters())
        for kind, feature in model.features_of(llm).items():
            count[f"{kind}/{llm.name}"] = sum(p.numel() for p in feature.parameters())
    return count
