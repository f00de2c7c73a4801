"""What a frozen LLM's own attention looks like, from one prompt: a measure for keys and values that it did not make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.prompt import question_ids
from ..config import Config
from ..llm import LMWrapper
from ..rotary import Rotary

QUESTION = "When was it opened?"
DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Positions from a slot to a query that reads it, at which a quiet key must be quiet."""
RIDGE = 1e-3
"""Of the squared size of a query."""


@dataclass(frozen=True)
class Observed:
    """One layer on a prompt of T tokens, on the CPU, without BOS, before RoPE, behind the LLM's own norms.

    Attributes:
        queries: f32 [T,heads,D].
        keys, values: f32 [T,kv_heads,D].
        scale: what a product of query and key is multiplied by.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float


@torch.no_grad()
def observe(config: Config, llm: LMWrapper) -> list[Observed]:
    """Every layer while it reads the config's anchor text and a question about it."""
    body = [*llm.encode(config.anchor_text), *question_ids(llm.encode, QUESTION)]
    ids = torch.tensor([[*llm.special.bos, *body]], device=llm.model.device)
    found: list[Observed] = []

    def note(layer: Any, _: Any, given: dict[str, Tensor], skip: int) -> None:
        found.append(_projected(layer, given["hidden_states"][0, skip:]))

    hook = partial(note, skip=len(llm.special.bos))
    layers = [layer.self_attn for layer in llm.model.model.layers]
    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        llm.model.model(input_ids=ids, use_cache=False)
    finally:
        for each in hooks:
            each.remove()
    return found


def _projected(layer: Any, states: Tensor) -> Observed:
    def heads(name: str) -> Tensor:
        out: Tensor = getattr(layer, f"{name}_proj")(states).view(len(states), -1, layer.head_dim)
        norm = getattr(layer, f"{name}_norm", None)
        return (out if norm is None else norm(out)).float().cpu()

    return Observed(heads("q"), heads("k"), heads("v"), float(layer.scaling))


def quiet_keys(observed: list[Observed], rotary: Rotary) -> Tensor:
    """Keys f32 [L,kv_heads,D] that score close to -1 for whatever query reads them, near or far.

    Queries of a trained LLM have much in common (it is what makes BOS take the attention that nothing else wants), so
    a constant is a linear function of them; least squares finds it. Where queries are random none does.
    """
    distances = torch.tensor(DISTANCES)
    out = []
    for number, layer in enumerate(observed):
        heads = layer.keys.shape[1]
        asked = layer.queries.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)  # [kv_heads,N,D]
        turn = rotary.one(number)
        seen = [turn(asked[None, None], d.expand(asked.shape[1]))[0, 0] for d in distances]
        rows = torch.cat(seen, dim=1).double() * layer.scale
        gram = rows.transpose(1, 2) @ rows / rows.shape[1]
        ridge = RIDGE * rows.square().mean() * torch.eye(rows.shape[2], dtype=torch.float64)
        out.append(torch.linalg.solve(gram + ridge, -rows.mean(1)).float())
    return torch.stack(out)
