"""When requests come and how long they are: Poisson, bursty, or from a file.

In: rates and sizes, or a JSONL file. Out: arrays. The same seed gives the same requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError

Arrivals = Literal["poisson", "bursty"]

BURST: Final = 4.0
"""In a burst requests come so many times as often as on average; bursts fill the fraction 1/8 of the time."""
BURST_SHARE: Final = 0.125
BURST_S: Final = 2.0
"""Mean length of a burst, seconds."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order in which they come.

    Attributes:
        at: float64 [n], seconds.
        prompt: int64 [n], positions.
        new: int64 [n], tokens that the answer will have; the scheduler knows only ``limit``.
        limit: int64 [n], most new tokens that were asked for.
        name: where they are from.
    """

    at: npt.NDArray[np.float64]
    prompt: npt.NDArray[np.int64]
    new: npt.NDArray[np.int64]
    limit: npt.NDArray[np.int64]
    name: str

    def __len__(self) -> int:
        return len(self.at)


@dataclass(frozen=True)
class Sizes:
    """What requests are like.

    Attributes:
        prompt: median positions of a prompt.
        spread: standard deviation of its logarithm.
        new: mean tokens of an answer, geometric.
        limit: most of them.
    """

    prompt: int = 51
    spread: float = 0.15
    new: float = 6.0
    limit: int = 16


def made(kind: Arrivals, count: int, rate: float, sizes: Sizes, seed: int) -> Trace:
    """``count`` requests at ``rate`` a second on average.

    Raises:
        InputError: 2111.
    """
    if kind not in get_args(Arrivals):
        expected = f"expected one of {', '.join(get_args(Arrivals))}, got {kind!r}"
        raise InputError(2111, "unknown option value", where="option --arrivals", expected=expected)
    random = np.random.default_rng(seed)
    gaps = random.exponential(1.0, count)
    at = np.cumsum(gaps) / rate if kind == "poisson" else _bursty(np.cumsum(gaps), rate, random)
    prompt = np.maximum(2, np.rint(sizes.prompt * np.exp(random.normal(0, sizes.spread, count)))).astype(np.int64)
    new = np.minimum(random.geometric(min(1.0, 1 / sizes.new), count), sizes.limit).astype(np.int64)
    return Trace(at, prompt, new, np.full(count, sizes.limit, np.int64), kind)


def _bursty(work: npt.NDArray[np.float64], rate: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Arrivals whose rate switches between two values: ``work`` is when they come if time ran at one a second."""
    calm = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
    spells = max(16, int(4 * work[-1] / rate / (BURST_S / BURST_SHARE)) + 16)
    lengths = np.empty(2 * spells)
    lengths[0::2] = random.exponential(BURST_S * (1 - BURST_SHARE) / BURST_SHARE, spells)
    lengths[1::2] = random.exponential(BURST_S, spells)
    speed = np.tile([calm * rate, BURST * rate], spells)
    clock = np.concatenate([[0], np.cumsum(lengths)])
    done = np.concatenate([[0], np.cumsum(lengths * speed)])
    at: npt.NDArray[np.float64] = np.interp(work, done, clock)
    return at


def read(path: Path) -> Trace:
    """A JSONL file with ``at`` in seconds, ``prompt``, ``new_tokens`` and, if it is another, ``limit`` a line.

    Raises:
        InputError: 2106 no such file; 2104 nothing in it; 2101 a line that is none of these, or times that go back.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(2106, "cannot read the trace", where=str(path), expected=str(e)) from e
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(2104, "no requests in the trace", where=str(path))
    at, prompt, new, limit = (np.array(column) for column in zip(*rows, strict=True))
    if (np.diff(at) < 0).any():
        number = int(np.argmax(np.diff(at) < 0)) + 2
        raise InputError(2101, "times of the trace go back", where=f"{path}, request {number}")
    return Trace(at - at[0], prompt, new, limit, path.name)


def _row(line: str, where: str) -> tuple[float, int, int, int]:
    try:
        found = json.loads(line)
        at, prompt, new = float(found["at"]), int(found["prompt"]), int(found["new_tokens"])
        limit = int(found.get("limit", new))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        expected = "expected an object with at, prompt and new_tokens"
        raise InputError(2101, "not a line of a trace", where=where, expected=expected) from e
    if not (np.isfinite(at) and prompt > 0 and 0 < new <= limit):
        expected = "expected a finite time, a prompt of at least 1 and 1..limit new tokens"
        raise InputError(2101, "not a line of a trace", where=where, expected=expected)
    return at, prompt, new, limit
