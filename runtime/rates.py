"""Samples a minute, two paths on one engine: rounds alternate, so that a slow minute of the machine hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Samples a minute: the median round, the slowest, the fastest."""

    median: float
    slowest: float
    fastest: float


def alternate(
    paths: Mapping[str, Callable[[], object]],
    samples: int,
    rounds: int,
    done: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Rate]:
    """Time every path once a round. Call each once before, so that nothing is loaded while the clock runs.

    Args:
        paths: name -> work on ``samples`` samples.
        samples: samples of one call.
        rounds: timed rounds.
        done: called with 1 after every call.
        clock: seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, work in paths.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
            done(1)
    found = {}
    for name, all_rounds in seconds.items():
        rates = [60 * samples / max(s, 1e-9) for s in all_rounds]
        found[name] = Rate(statistics.median(rates), min(rates), max(rates))
    return found
