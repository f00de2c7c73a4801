"""Logits to drawn tokens: temperature, top-k, top-p. What a row draws depends on its own logits, its own options and
its own random number, not on its neighbours.

In: logits f32 [n,V] and one wish and number a row. Out: int64 [n]. Greedy rows never come here: the graph chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...engines.base import F32, I64

FEW: Final = 256
"""Tokens that are sorted first; most draws with a top-p end among them."""


@dataclass(frozen=True)
class Sampling:
    """How one row draws.

    Attributes:
        temperature: above 0; logits are divided by it.
        top_k: draw among so many likeliest tokens; 0: all.
        top_p: draw among the likeliest tokens that together reach this share of the probability.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def draw(logits: F32, wishes: Sequence[Sampling], numbers: Sequence[float]) -> I64:
    """One token a row.

    Args:
        logits: float32 [n,V], finite.
        wishes: n of them.
        numbers: n uniform random numbers in [0,1).
    """
    scores = logits.astype(np.float64) / np.array([w.temperature for w in wishes])[:, None]
    mass = np.exp(scores - scores.max(axis=1, keepdims=True))
    few = _likeliest(mass, FEW)
    found = [_one(mass[i], few[i], wish, numbers[i]) for i, wish in enumerate(wishes)]
    return np.array(found, np.int64)


def _likeliest(mass: npt.NDArray[np.float64], count: int) -> I64:
    """The ``count`` likeliest tokens of each row, in no order: int64 [n,count]."""
    if count >= mass.shape[1]:
        return np.broadcast_to(np.arange(mass.shape[1]), mass.shape)
    part: I64 = np.argpartition(-mass, count - 1, axis=1)[:, :count].astype(np.int64)
    return part


def _one(mass: npt.NDArray[np.float64], few: I64, wish: Sampling, number: float) -> int:
    if not wish.top_k and wish.top_p >= 1:
        return _at(mass, np.arange(len(mass)), number)
    wanted = min(wish.top_k or len(mass), len(mass))
    ids = _sorted(mass, few)
    # Of equal tokens at the edge the partition kept any: the whole row decides which come first.
    if len(few) < len(mass) and (wish.top_k >= len(few) or _short(mass, ids, wish)):
        ids = _sorted(mass, np.arange(len(mass)))
    kept = mass[ids[:wanted]]
    reached = np.cumsum(kept) >= wish.top_p * kept.sum() if wish.top_k else np.cumsum(kept) >= wish.top_p * mass.sum()
    last = int(np.argmax(reached)) if reached.any() else len(kept) - 1
    return _at(kept[: last + 1], ids[: last + 1], number)


def _short(mass: npt.NDArray[np.float64], ids: I64, wish: Sampling) -> bool:
    """Whether top-p needs more than these, or as much as the last of them."""
    if wish.top_k:
        return bool(mass[ids[-1]] == mass[ids[min(wish.top_k, len(ids)) - 1]])
    held = mass[ids]
    return bool(held[held > held[-1]].sum() < wish.top_p * mass.sum())


def _sorted(mass: npt.NDArray[np.float64], ids: npt.NDArray[np.int64]) -> I64:
    """Likeliest first, of equal ones the smaller id."""
    order = np.lexsort((ids, -mass[ids]))
    found: I64 = ids[order]
    return found


def _at(mass: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], number: float) -> int:
    """The id in whose share of the probability the number falls."""
    edges = np.cumsum(mass)
    place = int(np.searchsorted(edges, number * edges[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])
