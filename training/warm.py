"""Start from the weights of another run: a new schedule, perhaps other data, tasks or losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from .building import begin_adapter, begin_quantiser
from .checkpoint import (
    adapter_facts,
    adapter_file,
    config_of,
    encoder_file,
    encoder_fits,
    load_feature,
    load_tensors,
    read_meta,
)
from .config import Config
from .model import LatentModel

QUANTISER = "quantiser."
"""How the names of a quantiser's tensors begin, in the file of the encoder."""
ADDED = ("places.", "reads.", "naming.", "keep.", "word.")
"""How the names begin of what names further tokens and chooses them: a run may add it to a checkpoint without."""


def start_from(model: LatentModel, folder: Path, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Replace the closed-form start by a checkpoint's weights, trained or published.

    Returns the tasks that each LLM's rows were trained for.

    Parts that the checkpoint has not keep their own start: task rows of later tasks, another or no quantiser, features,
    adapters of further LLMs, whose keys are made with the checkpoint's encoder.

    Args:
        model: after ``building.start``.
        folder: the checkpoint.
        texts: the quantiser is fitted to their latents where the checkpoint has none; and see ``begin_adapter``.

    Raises:
        ModelError: 3101 its encoder reads another tokenizer; 3102 an adapter for another version of an LLM; 3204,
            3220-3223 as for a checkpoint.
    """
    meta = read_meta(folder)
    encoder_fits(meta, model.source, folder)
    found = load_tensors(folder / encoder_file())
    fitted = _quantiser_of(config_of(meta, str(folder))) == _quantiser_of(model.config)
    # Codes of tokens once had other tensors: such a checkpoint gets new ones.
    own = {name for name in model.encoder.state_dict() if name.startswith(QUANTISER)}
    fitted = fitted and own == {name for name in found if name.startswith(QUANTISER)}
    if not fitted:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(QUANTISER)}
    _put(model.encoder, found, folder / encoder_file(), ADDED if fitted else (QUANTISER, *ADDED))
    if not fitted:
        begin_quantiser(model, list(texts))
    return put_adapters(model, meta, folder, texts)


def _quantiser_of(config: Config) -> tuple[object, ...]:
    """What must be alike for a quantiser's weights to fit."""
    learned = (config.fsq_hidden,) if config.quantiser_type == "fsq" else ()
    named = (config.places,) if config.quantiser_type == "tokens" else ()
    return (config.fsq_profile, config.quantiser_type, *learned, *named) if config.fsq_profile else ()


def put_adapters(
    model: LatentModel, meta: dict[str, Any], folder: Path, texts: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The checkpoint's adapters, and a closed-form start for LLMs that it has none for; returns as ``start_from``."""
    config = config_of(meta, str(folder))
    for llm in model.llms:
        if llm.name not in meta["adapters"]:
            begin_adapter(model, llm, list(texts))
            continue
        adapter_facts(meta, llm, folder)
        path = folder / adapter_file(llm.name)
        tensors = load_tensors(path)
        own = model.adapter(llm).state_dict()["task.weight"]
        rows = tensors["task.weight"].shape[0] if "task.weight" in tensors else 0
        if rows < own.shape[0] and own.shape[1:] == tensors.get("task.weight", own).shape[1:]:
            known = tensors.get("task.weight", own[:0]).float()
            tensors["task.weight"] = torch.cat([known, own[rows:].detach().cpu().float()])
        _put(model.adapter(llm), tensors, path, ADDED)
        for kind, feature in model.features_of(llm).items():
            if kind in config.features:
                load_feature(feature, meta, llm, folder)
    return {llm.name: config.tasks if llm.name in meta["adapters"] else () for llm in model.llms}


def _put(module: nn.Module, tensors: dict[str, Tensor], path: Path, optional: tuple[str, ...]) -> None:
    own = module.state_dict()
    # A part is there or not: half of one is of another version.
    absent = tuple(part for part in optional if not any(name.startswith(part) for name in tensors))
    for name in own.keys() | tensors.keys():
        if absent and name.startswith(absent):
            continue
        wanted, came = (tuple(t[name].shape) if name in t else None for t in (own, tensors))
        if wanted != came:
            raise ModelError(
                3223,
                f"checkpoint tensor {name} does not fit",
                where=str(path),
                expected=f"expected shape {wanted or 'none'}, got {came or 'none'}",
            )
    # Each in its own type: the lexicon's keys are integers that a float32 cannot hold.
    module.load_state_dict({**own, **{name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}})
