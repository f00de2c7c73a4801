"""How answers are scored: SQuAD's normalisation, token F1, exact match, and intervals of a mean.

Strings and numbers in, numbers out. Training, export and benchmarks share these, so that their figures compare.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
"""Of one bootstrap."""


def normalise(text: str) -> str:
    """SQuAD's answer normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(answer: str, gold: str) -> float:
    """Token F1 of two answers after normalisation; 1 if both are empty."""
    a, g = normalise(answer).split(), normalise(gold).split()
    if not a or not g:
        return float(a == g)
    same = sum((Counter(a) & Counter(g)).values())
    return 2 * same / (len(a) + len(g))


def best_f1(answer: str, golds: Sequence[str]) -> float:
    """F1 against the gold answer that fits best."""
    return max(f1(answer, gold) for gold in golds)


def exact(answer: str, golds: Sequence[str]) -> float:
    """1 if the normalised answer is one of the gold answers, else 0."""
    return float(any(normalise(answer) == normalise(gold) for gold in golds))


def interval(values: npt.NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``values`` [N]: ``RESAMPLES`` resamples of its entries."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def grouped_interval(
    values: npt.NDArray[Any], groups: Sequence[int] | npt.NDArray[Any], seed: int = 0
) -> tuple[float, float]:
    """As ``interval``, but whole groups are drawn: questions about one text are not independent.

    Args:
        values: [N].
        groups: [N], the text of each value, numbered from 0.
        seed: of the resamples; those of several figures with one seed are the same, so differences are paired.
    """
    index = np.asarray(groups)
    many = int(index.max()) + 1
    drawn = np.random.default_rng(seed).integers(many, size=(RESAMPLES, many))
    weights = np.stack([np.bincount(row, minlength=many) for row in drawn])[:, index].astype(np.float64)
    low, high = np.percentile(weights @ values / weights.sum(1), [2.5, 97.5])
    return float(low), float(high)
