"""Numbers about repeated timings: medians, spread, percentiles, and ratios with intervals.

Lists of seconds in, plain dictionaries out. A missing value is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

NOISY: Final = 0.05
"""Coefficient of variation above which a figure is marked."""
P99_NEEDS: Final = 1000
"""Fewest requests for a 99th percentile."""
RESAMPLES: Final = 2000


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, most, interquartile range, coefficient of variation, and whether that is too much."""
    array = np.asarray(values, np.float64)
    low, median, high = np.percentile(array, [25, 50, 75])
    cv = float(array.std(ddof=1) / array.mean()) if len(array) > 1 else None
    return {
        "median": float(median),
        "min": float(array.min()),
        "max": float(array.max()),
        "iqr": float(high - low),
        "cv": cv,
        "noisy": cv is not None and cv > NOISY,
        "n": len(array),
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and, of at least ``P99_NEEDS`` values, p99."""
    p50, p95, p99 = np.percentile(np.asarray(values, np.float64), [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99) if len(values) >= P99_NEEDS else None}


def ratio(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> dict[str, float]:
    """How many times faster: median over rounds of slow / fast seconds, with a 95 % bootstrap interval.

    Round i of both ran next to each other, so that a slow minute of the machine is in both.

    Args:
        slow: seconds a sample of each round.
        fast: the same rounds of the other contender.
        seed: of the resampling.
    """
    each = np.asarray(slow, np.float64) / np.asarray(fast, np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(each[rng.integers(len(each), size=(RESAMPLES, len(each)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"median": float(np.median(each)), "low": float(low), "high": float(high)}
