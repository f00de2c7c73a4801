"""Models put together: modules for a config, weights from the closed-form start or from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .adapter import Adapter, LearnedAdapter
from .batch import pad
from .checkpoint import config_of, load_into, read_meta
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .fsq import start_quantiser
from .llm import LMWrapper
from .model import LatentModel, build_adapter, build_encoder, key
from .start import inverse_document_frequency, set_embedding, start_adapter, start_encoder

FITTED_TEXTS = 256
"""Texts whose latents a new quantiser is fitted to: 8,192 latents at M=32."""


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
        adapter = build_adapter(config, table.shape[0], llm.width)
        if isinstance(adapter, LearnedAdapter):
            adapter.set_table(table)
        adapters[key(llm.name)] = adapter
    set_embedding(encoder, source.embedding.cpu())
    return LatentModel(config, encoder, adapters, llms, source).to(device)


def start(model: LatentModel, texts: list[str]) -> None:
    """Set all trainable weights in closed form (see ``start.py``); ``texts`` give the document frequencies."""
    llm, encoder = model.source, model.encoder
    assert isinstance(encoder, EncoderFromEmbedLayer)
    documents = [e.ids for e in llm.tokenizer.encode_batch(texts, add_special_tokens=False)]
    start_encoder(encoder, llm, inverse_document_frequency(documents, encoder.get_buffer("idf").shape[0]))
    begin_quantiser(model, texts)
    directions, mean = encoder.projection.weight.detach().cpu(), encoder.get_buffer("mean").cpu()
    for each in model.llms:
        adapter = model.adapter(each)
        assert isinstance(adapter, (Adapter, LearnedAdapter))
        start_adapter(adapter, each, directions, mean, model.config.tasks)


def begin_quantiser(model: LatentModel, texts: list[str]) -> None:
    """Fit the quantiser, if there is one, to the latents that the encoder makes of the first of ``texts`` now."""
    if model.quantiser is None:
        return
    device = next(model.encoder.parameters()).device
    ids = sorted((model.source.encode(t)[: model.config.max_tokens] for t in texts[:FITTED_TEXTS]), key=len)
    found: list[torch.Tensor] = []
    with torch.no_grad():
        for at in range(0, len(ids), 16):
            input_ids, lengths = (t.to(device) for t in pad(ids[at : at + 16]))
            z = model.encode(input_ids, lengths)
            found.append(z[z.any(-1)].cpu())
    # On the CPU, whose linear algebra is the same everywhere.
    start_quantiser(model.quantiser.cpu(), torch.cat(found))
    model.quantiser.to(device)


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
    config = replace(config, device=device, precision=precision, llms=llms or config.llms)
    model = build_model(config, pick_device(device))
    load_into(folder, model)
    return model.eval(), meta


def parameters(model: LatentModel) -> dict[str, int]:
    """Trainable parameters by module."""
    count = {"encoder": sum(p.numel() for p in model.encoder.parameters())}
    for llm in model.llms:
        count[f"adapter/{llm.name}"] = sum(p.numel() for p in model.adapter(llm).parameters())
    return count
