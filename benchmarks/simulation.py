"""``latentwire bench simulate``, once its options are read: policies of the scheduler under the same requests.

In: an ``Asked``. Out: a report. The costs are measured on a bundle, or given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.console import message
from ..core.errors import EXIT_OK, InputError
from ..engines.opening import open_engine
from ..runtime.scheduler.service import LOOK, ROOM
from ..runtime.scheduler.state import Limits
from . import machine, traces
from .report import Report, Table, closed, share, whole, write
from .simulate import simulate
from .step_cost import Cost, measure
from .traces import Arrivals, Sizes, Trace

WINDOW: Final = 2048
"""Most positions of a prompt with its answer."""


@dataclass(frozen=True)
class Asked:
    """Options as they were given.

    Attributes:
        bundle: its steps are timed; None: ``cost`` says what they take.
        trace: file of requests; None: made as ``arrivals`` and ``sizes`` say.
        rate: requests a second for all engines; None: ``load``, a share of what they can do by the cost alone.
        waiting: most requests that wait at one engine.
    """

    bundle: Path | None
    cost: Cost | None
    trace: Path | None = None
    arrivals: Arrivals = "poisson"
    requests: int = 100_000
    rate: float | None = None
    load: float = 0.8
    sizes: Sizes = field(default_factory=Sizes)
    rows: int = 16
    engines: int = 1
    waiting: int | None = None
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    as_json: bool = False


def run(asked: Asked) -> int:
    """Simulate every policy and report.

    Raises:
        BundleError, InputError: before anything is run.
    """
    facts = {"machine": machine.machine(), **machine.run_facts(asked.seed)}
    cost = asked.cost or _measured(asked)
    rate = asked.rate or asked.load * capacity(cost, asked.sizes, asked.rows) * asked.engines
    trace = traces.read(asked.trace) if asked.trace else _made(asked, rate)
    _check(trace)
    found = {name: _timed(trace, cost, limits, asked) for name, limits in policies(asked).items()}
    report = _report(found, trace, cost, facts, asked)
    report.show(asked.as_json)
    if asked.out:
        for path in write([report], asked.out / f"simulate-{trace.name.removesuffix('.jsonl')}"):
            message(f"wrote {path}")
    return EXIT_OK


def policies(asked: Asked) -> Mapping[str, Limits]:
    """What is compared: whole batches, and refill at once or when a quarter or half of the rows is free."""
    fixed: dict[str, Any] = {"waiting": asked.waiting, "step": ROOM, "look": LOOK, "online": True}
    sizes = (asked.rows, asked.rows * WINDOW, WINDOW)
    found = {"batches": Limits(*sizes, refill=False, **fixed)}
    for part in (0, 4, 2):
        at = max(1, asked.rows // part) if part else 1
        found[f"refill at {at}"] = Limits(*sizes, refill_at=at, **fixed)
    return found


def capacity(cost: Cost, sizes: Sizes, rows: int) -> float:
    """Requests a second of one engine whose rows are always full and whose prompts come ``rows`` at a time."""
    prompt = cost.prefill / rows + cost.position * sizes.prompt
    return 1e3 / (prompt + (sizes.new - 1) * (cost.decode / rows + cost.row))


def _made(asked: Asked, rate: float) -> Trace:
    return traces.made(asked.arrivals, asked.requests, rate, asked.sizes, asked.seed)


def _check(trace: Trace) -> None:
    need = int((trace.prompt + trace.limit).max())
    if need > WINDOW:
        expected = f"expected at most {WINDOW} positions with the answer, got {need}"
        raise InputError(2101, "a request of the trace is too long", where=trace.name, expected=expected)


def _measured(asked: Asked) -> Cost:
    if asked.bundle is None:
        raise InputError(2111, "no cost", where="option --cost", expected="expected --bundle or --cost")
    engine = open_engine(asked.bundle, threads=asked.threads, verify="size")
    try:
        return measure(engine, asked.sizes.prompt, asked.rows)
    finally:
        engine.close()


def _timed(trace: Trace, cost: Cost, limits: Limits, asked: Asked) -> dict[str, Any]:
    start = time.perf_counter()
    found = simulate(trace, cost, limits, asked.engines, asked.seed)
    return {**found, "simulated_in_s": time.perf_counter() - start}


def _report(
    found: Mapping[str, dict[str, Any]], trace: Trace, cost: Cost, facts: dict[str, Any], asked: Asked
) -> Report:
    rate = len(trace) / float(trace.at[-1]) if trace.at[-1] else float("inf")
    conditions = f"{len(trace):,} requests, {trace.name}, {rate:,.1f}/s, {asked.engines} engines of {asked.rows} rows"
    columns = [
        "policy",
        "busy",
        "padded",
        "rows idle",
        "wait p50",
        "p99",
        "first token p50",
        "p99",
        "answer p50",
        "p99",
        "refused",
    ]
    table = Table(conditions, columns)
    for name, f in found.items():
        times = [
            whole(f[what][p], " ms") for what in ("wait_ms", "first_token_ms", "answer_ms") for p in ("p50", "p99")
        ]
        shares = [share(f[what]) for what in ("busy_share", "padded_share", "rows_idle_share")]
        table.rows.append([name, *shares, *times, whole(f["refused"])])
    prefill = f"prefill {cost.prefill:.1f} ms + {cost.position:.3f} ms a position"
    lines = f"{prefill}; decode {cost.decode:.1f} ms + {cost.row:.2f} ms a row"
    remarks = [
        f"Cost of a step: {lines}; " + ("given." if asked.cost else "measured on the bundle."),
        "A simulation: the scheduler is the real one, time is computed.",
    ]
    data = {"policies": dict(found), "cost": cost.facts(), "rate": rate, "trace": trace.name}
    closed(facts, remarks)
    return Report("simulate", [table], data, facts, remarks)
