"""The scheduler under a stream of requests, without an engine: each step takes the time that a cost says.

In: a trace, a cost, limits. Out: waiting times, and how well the rows were used. What is run is
``runtime.scheduler.state`` itself; only time is made up.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.scheduler.state import Decode, Job, Limits, Prefill, Scheduler
from .step_cost import Cost
from .traces import Trace


@dataclass
class Used:
    """What one engine did. Seconds, and counts of positions and of rows times steps."""

    busy_s: float = 0.0
    prefills: int = 0
    decodes: int = 0
    real: int = 0
    padded: int = 0
    rows_read: int = 0
    rows_computed: int = 0


@dataclass
class Node:
    """One engine with its queue. ``clock`` is when its last step ended."""

    limits: Limits
    cost: Cost
    trace: Trace
    started: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]
    ended: npt.NDArray[np.float64]
    clock: float = 0.0
    steps: int = 0
    used: Used = field(default_factory=Used)
    scheduler: Scheduler = field(init=False)
    ends: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)

    @property
    def load(self) -> int:
        """Requests it has."""
        return self.scheduler.running + self.scheduler.waiting

    def offer(self, key: int) -> bool:
        """A request; False: its queue is full."""
        prompt, limit = int(self.trace.prompt[key]), int(self.trace.limit[key])
        return self.scheduler.add(Job(key, prompt, limit))

    def advance(self, until: float) -> None:
        """Take all steps that begin before ``until``."""
        while self.clock < until:
            plan = self.scheduler.plan()
            if plan is None:
                self.clock = until if np.isfinite(until) else self.clock
                return
            if isinstance(plan, Prefill):
                self._prefill(plan)
            else:
                self._decode(plan, until)

    def _prefill(self, plan: Prefill) -> None:
        jobs = [job for _, job in plan.placed]
        longest = max(job.prompt for job in jobs)
        padded = longest * len(jobs)
        keys = [job.key for job in jobs]
        self.started[keys] = self.clock
        self._spend(self.cost.prefill + self.cost.position * padded)
        self.first[keys] = self.clock
        self.used.prefills += 1
        self.used.real += sum(job.prompt for job in jobs)
        self.used.padded += padded
        for key in keys:
            heapq.heappush(self.ends, (self.steps + int(self.trace.new[key]) - 1, key))
        self._finish()

    def _decode(self, plan: Decode, until: float) -> None:
        """Steps up to the next one that ends a request, or to the next arrival: between them nothing changes."""
        rows = plan.stop - plan.start
        each = (self.cost.decode + self.cost.row * rows) / 1e3
        count = self.ends[0][0] - self.steps
        if np.isfinite(until) and each > 0:
            count = min(count, max(1, int(np.ceil((until - self.clock) / each))))
        self._spend(1e3 * each * count)
        self.steps += count
        self.used.decodes += count
        self.used.rows_read += len(plan.running) * count
        self.used.rows_computed += rows * count
        self._finish()

    def _finish(self) -> None:
        while self.ends and self.ends[0][0] <= self.steps:
            _, key = heapq.heappop(self.ends)
            self.ended[key] = self.clock
            self.scheduler.finish(key)

    def _spend(self, ms: float) -> None:
        self.clock += ms / 1e3
        self.used.busy_s += ms / 1e3


def simulate(trace: Trace, cost: Cost, limits: Limits, engines: int = 1, seed: int = 0) -> dict[str, Any]:
    """Run a trace through ``engines`` engines; each request goes to the emptier of two that are drawn.

    Returns:
        Waits and latencies in ms (p50, p99), requests a minute, shares of time and of rows, refused requests.
    """
    count = len(trace)
    started, first, ended = (np.full(count, np.nan) for _ in range(3))
    nodes = [Node(limits, cost, trace, started, first, ended) for _ in range(engines)]
    pairs = np.random.default_rng(seed).integers(0, engines, (count, 2)).tolist()
    refused = 0
    for key, (at, pair) in enumerate(zip(trace.at.tolist(), pairs, strict=True)):
        for index in set(pair):
            nodes[index].advance(at)
        refused += not min((nodes[i] for i in pair), key=lambda node: node.load).offer(key)
    for node in nodes:
        node.advance(float("inf"))
    return _summary(trace, [started, first, ended], nodes, refused)


def _summary(trace: Trace, times: list[npt.NDArray[np.float64]], nodes: list[Node], refused: int) -> dict[str, Any]:
    started, first, ended = times
    done = np.isfinite(ended)
    span = max(node.clock for node in nodes)
    total = {name: sum(getattr(node.used, name) for node in nodes) for name in Used.__dataclass_fields__}
    return {
        "requests": len(trace),
        "answered": int(done.sum()),
        "refused": refused,
        "seconds": span,
        "per_minute": 60 * int(done.sum()) / span if span else 0.0,
        "busy_share": total["busy_s"] / (span * len(nodes)) if span else 0.0,
        "padded_share": 1 - total["real"] / total["padded"] if total["padded"] else 0.0,
        "rows_idle_share": 1 - total["rows_read"] / total["rows_computed"] if total["rows_computed"] else 0.0,
        "prefills": total["prefills"],
        "decodes": total["decodes"],
        "wait_ms": _percentiles((started - trace.at)[done]),
        "first_token_ms": _percentiles((first - trace.at)[done]),
        "answer_ms": _percentiles((ended - trace.at)[done]),
    }


def _percentiles(seconds: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p99 and the most, in ms; p99 needs a thousand requests."""
    if not len(seconds):
        return {"p50": None, "p99": None, "most": None}
    p50, p99, most = (float(1e3 * np.percentile(seconds, q)) for q in (50, 99, 100))
    return {"p50": p50, "p99": p99 if len(seconds) >= 1000 else None, "most": most}
