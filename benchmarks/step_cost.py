"""What the steps of an engine cost: two straight lines, fitted to measured times.

In: an engine. Out: milliseconds of a prefill by positions and of a decode by rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from ..engines.base import F32, Engine
from ..engines.buffers import Buffers

ROWS: Final = (1, 2, 4, 8, 16)
REPEATS: Final = 5


@dataclass(frozen=True)
class Cost:
    """Milliseconds.

    Attributes:
        prefill: of every prefill.
        position: more for each position of it, padding included.
        decode: of every decode.
        row: more for each row of it.
    """

    prefill: float
    position: float
    decode: float
    row: float

    def facts(self) -> dict[str, Any]:
        """For a report."""
        return {f"{name}_ms": round(value, 4) for name, value in asdict(self).items()}


def measure(engine: Engine, prompt: int, most: int) -> Cost:
    """Time prefills and decodes of 1 to ``most`` rows with prompts of ``prompt`` positions."""
    hidden = engine.bundle.manifest.llm.hidden_size
    sizes = [rows for rows in ROWS if rows <= most] or [1]
    prefills, decodes = [], []
    for rows in sizes:
        buffers = engine.alloc(rows, engine.bundle.manifest.capacity or prompt + 32)
        embeds = np.random.default_rng(0).normal(0, 0.1, (rows, prompt, hidden)).astype(np.float32)
        prefills.append(_timed(lambda b=buffers, x=embeds: _prefill(engine, b, x)))  # type: ignore[misc]
        decodes.append(_timed(lambda b=buffers: _decode(engine, b, prompt)))  # type: ignore[misc]
    prefill, position = _line([rows * prompt for rows in sizes], prefills)
    decode, row = _line(sizes, decodes)
    return Cost(prefill, position, decode, row)


def _prefill(engine: Engine, buffers: Buffers, embeds: F32) -> None:
    engine.prefill(buffers, embeds, np.full(len(embeds), embeds.shape[1], np.int64))


def _decode(engine: Engine, buffers: Buffers, prompt: int) -> None:
    buffers.lengths[:] = prompt
    engine.decode(buffers)


def _timed(call: Callable[[], None]) -> float:
    """Median milliseconds; the first call is not counted."""
    call()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return median(found)


def _line(x: list[int], y: list[float]) -> tuple[float, float]:
    """Intercept and slope, neither below zero."""
    if len(x) == 1:
        return 0.0, y[0] / x[0]
    slope, start = np.polyfit(x, y, 1)
    slope = max(float(slope), 0.0)
    return max(float(start), 0.0), slope
