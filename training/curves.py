"""A run's log as a picture: each loss term, held-out NLL, shuffle gap and speed against steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of ``log.jsonl``; after a resume the later record of a step counts. A line cut short is left out."""
    records: dict[tuple[str, Any], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["event"], record.get("step")] = record
    return list(records.values())


def draw(run: Path) -> Path:
    """Write ``curves.png`` into a run folder and return its path; drawn anew after every measurement."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_log(run / "log.jsonl")
    steps = sorted((r for r in records if r["event"] == "step"), key=lambda r: int(r["step"]))
    evals = sorted((r for r in records if r["event"] == "eval"), key=lambda r: int(r["step"]))
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained", sharex=True)
    (losses, held), (gaps, speeds) = axes
    for name in sorted({k for r in steps for k in r if "/" in k}):
        _line(losses, [(r["step"], r[name]) for r in steps if name in r], name)
    for name in sorted({k for r in evals for k in r if "/" in k}):
        points = [(r["step"], r[name]["nll"]) for r in evals if name in r]
        if len(points) == 1:
            held.axhline(points[0][1], linestyle=":", label=name, color="0.4")
            held.annotate(name.rsplit("/", 1)[-1], (0, points[0][1]), fontsize=8)
        else:
            held.plot(*zip(*points, strict=True), marker="o", label=name)
    for llm in sorted({k.rsplit("/", 1)[0] for r in evals for k in r if k.endswith("/shuffled")}):
        own, other = f"{llm}/latents", f"{llm}/shuffled"
        points = [(r["step"], r[other]["nll"] - r[own]["nll"]) for r in evals if own in r and other in r]
        if points:
            gaps.plot(*zip(*points, strict=True), marker="o", label=llm)
    gaps.axhline(0.0, color="0.7", linewidth=0.8)
    _line(speeds, [(r["step"], r["speed"]["samples_s"]) for r in steps if "speed" in r], "samples/s")
    _stage_marks(axes, steps)
    losses.set(ylabel="nats a token", title="training loss, each term")
    held.set(ylabel="nats a token", title="held-out answer NLL")
    gaps.set(xlabel="step", ylabel="nats a token", title="shuffle gap: NLL from another text's latents, minus own")
    speeds.set(xlabel="step", ylabel="contexts a second", title="speed")
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)
    return run / "curves.png"


def _line(axis: Any, points: list[tuple[int, float]], name: str) -> None:
    if points:
        axis.plot(*zip(*points, strict=True), color="0.85", linewidth=0.8)
        axis.plot(*zip(*_smooth(points), strict=True), label=name)


def _stage_marks(axes: Any, steps: list[dict[str, Any]]) -> None:
    """A line where a stage begins, with its name on top."""
    before = None
    for record in steps:
        stage = record.get("stage")
        if before is not None and stage != before:
            for axis in axes.flat:
                axis.axvline(record["step"], color="0.6", linestyle="--", linewidth=0.8)
            place = {"xycoords": ("data", "axes fraction"), "va": "top", "fontsize": 8}
            axes[0, 0].annotate(f" {stage}", (record["step"], 0.99), **place)
        before = stage


def _smooth(points: list[tuple[int, float]], keep: float = 0.9) -> list[tuple[int, float]]:
    out: list[tuple[int, float]] = []
    mean = points[0][1]
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        out.append((step, mean))
    return out
