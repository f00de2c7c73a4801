"""Curves: one variable at a time, the others as the standard has them.

Context length, latents a text, new tokens, and documents (on the toy engine, so that only our own code is timed).
In: a plan. Out: a report; every point has samples a minute, CPU time and memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..core.console import track
from ..engines.toy import write_toy_bundle
from .inputs import Sample, resized
from .launches import own_launch
from .plan import Plan
from .report import Report, Table, closed, spreads, whole
from .rounds import alternate
from .session import Contender, Session

CONTEXT_BYTES: Final = (256, 512, 1024, 2048, 4096, 8192)
LATENTS: Final = (8, 16, 32, 58, 64)
NEW_TOKENS: Final = (1, 16, 64)
DOCUMENTS: Final = (100, 1_000, 10_000, 100_000)
TEXT_BYTES: Final = 16 << 10
"""UTF-8 bytes of whole texts that a round reads, but at least LEAST_TEXTS of them."""
LEAST_TEXTS: Final = 4
STUB_TEXT: Final = 60
"""UTF-8 bytes of a document for the toy engine."""

Point = dict[str, Any]


def scaling(plan: Plan) -> Report:
    """Measure all curves of the first bundle."""
    facts, remarks = plan.facts(), plan.remarks()
    curves: dict[str, list[Point]] = {}
    with track("scaling", 4, "curves") as bar:
        for name, points in (
            ("context_bytes", _context(plan)),
            ("latents", _latents(plan)),
            ("new_tokens", _new_tokens(plan)),
            ("documents", _documents(plan)),
        ):
            curves[name] = list(points)
            bar.advance()
    remarks.append("Documents run on the toy engine: what is timed is everything but the models.")
    closed(facts, remarks)
    return Report("scaling", _tables(curves), {"curves": curves}, facts, remarks)


def _context(plan: Plan) -> Iterator[Point]:
    sizes = CONTEXT_BYTES[:2] if plan.quick else CONTEXT_BYTES
    samples = plan.inputs.take(_count(plan))
    for size in sizes:
        yield from _measure(plan, resized(samples, size), ("W1", "W1-text", "W2"), {"x": size})


def _latents(plan: Plan) -> Iterator[Point]:
    for latents in LATENTS[:2] if plan.quick else LATENTS:
        samples = plan.inputs.take(_count(plan))
        yield from _measure(replace(plan, latents=latents), samples, ("W1", "W2"), {"x": latents})


def _new_tokens(plan: Plan) -> Iterator[Point]:
    for new in NEW_TOKENS[:2] if plan.quick else NEW_TOKENS:
        samples = plan.inputs.take(_count(plan))
        yield from _measure(replace(plan, new_tokens=new), samples, ("W1", "W1-text"), {"x": new})


def _documents(plan: Plan) -> Iterator[Point]:
    counts = DOCUMENTS[:2] if plan.quick else DOCUMENTS
    with tempfile.TemporaryDirectory(prefix="latentwire-bench-") as folder:
        bundle = write_toy_bundle(Path(folder) / "toy", max_tokens=128).path
        launch = own_launch(bundle, 1, label="toy")
        texts = resized(plan.inputs.take(max(counts)), STUB_TEXT)
        for count in counts:
            # A process of its own for every point: its peak memory is the point's.
            with Session([launch], None, "i8") as session:
                session.prepare(texts[:count], compress=False)
                who = Contender(launch, "W2")
                found = alternate(session, [who], lambda who, n=count: (n, 16), _rounds(plan), 1)  # type: ignore[misc]
                if who in found:
                    stats = session.ask(launch, "stats") or {}
                    yield _point(who, found[who].figures(), {"x": count}, stats)


def _text_samples(samples: Sequence[Sample]) -> int:
    """How many whole texts are read in a round: fewer long ones, which need no company to fill the processors."""
    longest = max(len(s.text.encode()) for s in samples)
    return min(len(samples), max(LEAST_TEXTS, TEXT_BYTES // longest))


def _measure(plan: Plan, samples: Sequence[Sample], workloads: Sequence[str], point: Point) -> Iterator[Point]:
    batch = min(max(plan.batches), len(samples))
    with Session([plan.own], plan.latents, plan.codec) as session:
        session.prepare(samples)
        everyone = session.contenders(workloads)

        def sizes(who: Contender) -> tuple[int, int]:
            count = _text_samples(samples) if who.workload == "W1-text" else len(samples)
            return count, min(batch, count)

        found = alternate(session, everyone, sizes, _rounds(plan), plan.new_tokens)
        stats = session.ask(plan.own, "stats") or {}
        for who, timing in found.items():
            yield _point(who, timing.figures(), point, stats)
        for name, why in session.failed.items():
            yield {**point, "contender": name, "failed": why}


def _point(who: Contender, figures: dict[str, Any], point: Point, stats: dict[str, Any]) -> Point:
    return {**point, "workload": who.workload, **figures, "peak_rss_bytes": stats.get("peak_rss_bytes")}


def _count(plan: Plan) -> int:
    return max(4, plan.samples // 2)


def _rounds(plan: Plan) -> int:
    return min(plan.rounds, 2)


def _tables(curves: dict[str, list[Point]]) -> list[Table]:
    out = []
    for name, points in curves.items():
        columns = [name, "workload", "samples/min", "samples/CPU-min", "prompt tokens", "peak MB"]
        table = Table(f"samples a minute against {name.replace('_', ' ')}", columns)
        for p in points:
            if "failed" in p:
                table.rows.append([p["x"], p["contender"], p["failed"][:160], "", "", ""])
                continue
            rates = [spreads(p["samples_per_min"]), whole(p["samples_per_cpu_min"]["median"])]
            memory = p["peak_rss_bytes"]
            tokens = whole(p["prompt_tokens"]["real"])
            table.rows.append([p["x"], p["workload"], *rates, tokens, whole(memory / 1e6 if memory else None)])
        out.append(table)
    return out
