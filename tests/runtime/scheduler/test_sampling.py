"""Draws: the right distribution, and nothing of the neighbours in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.engines.base import F32
from latentwire.runtime.scheduler import sampling
from latentwire.runtime.scheduler.sampling import Sampling, draw


def plain(logits: F32, wish: Sampling, number: float) -> int:
    """The definition, over the whole vocabulary: sort, keep the top k, then the nucleus, then the inverse CDF."""
    scores = logits.astype(np.float64) / wish.temperature
    p = np.exp(scores - scores.max())
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[: wish.top_k or len(p)]
    kept, total, whole = [], 0.0, float(p[order].sum())
    for i in order:
        kept.append(i)
        total += p[i]
        if total >= wish.top_p * whole * (1 - 1e-12):
            break
    if not wish.top_k and wish.top_p >= 1:
        kept = list(range(len(p)))
    edges = np.cumsum(p[kept])
    return kept[min(int(np.searchsorted(edges, number * edges[-1], side="right")), len(kept) - 1)]


WISHES = st.builds(
    Sampling,
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 8, 40, 1000]),
    top_p=st.sampled_from([0.1, 0.5, 0.93, 1.0]),
)


@given(st.integers(0, 2**32), WISHES, st.sampled_from([0.0, 0.3, 0.999]), st.sampled_from([4, 16]), st.booleans())
def test_as_defined(seed: int, wish: Sampling, number: float, few: int, ties: bool) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, 60)).astype(np.float32) * 3
    if ties:
        logits = np.round(logits / 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FEW", few)
        assert draw(logits, [wish], [number])[0] == plain(logits[0], wish, number)


@given(st.integers(0, 2**32), st.lists(WISHES, min_size=2, max_size=6))
def test_neighbours_do_not_matter(seed: int, wishes: list[Sampling]) -> None:
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(size=(len(wishes), 700)) * 2).astype(np.float32)
    numbers = random.random(len(wishes)).tolist()
    together = draw(logits, wishes, numbers)
    alone = [draw(logits[i : i + 1], [wish], [numbers[i]])[0] for i, wish in enumerate(wishes)]
    assert together.tolist() == alone


def test_frequencies_are_the_probabilities() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    count = 4000
    numbers = np.random.default_rng(0).random(count).tolist()
    logits = np.log(np.tile(p, (count, 1))).astype(np.float32)
    found = np.bincount(draw(logits, [Sampling(1.0)] * count, numbers), minlength=4) / count
    assert np.abs(found - p).max() < 0.02
    colder = np.bincount(draw(logits, [Sampling(0.5)] * count, numbers), minlength=4) / count
    assert np.abs(colder - p**2 / (p**2).sum()).max() < 0.02
    nucleus = np.bincount(draw(logits, [Sampling(1.0, top_p=0.79)] * count, numbers), minlength=4) / count
    assert np.abs(nucleus - np.array([0.625, 0.375, 0, 0])).max() < 0.02
