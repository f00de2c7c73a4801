"""A run's log as a picture: training loss and held-out NLL against steps."""

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
    """Write ``curves.png`` into a run folder and return its path."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_log(run / "log.jsonl")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = sorted((r for r in records if r["event"] == "step"), key=lambda r: int(r["step"]))
    for name in sorted({k for r in steps for k in r if "/" in k}):
        points = [(r["step"], r[name]) for r in steps if name in r]
        left.plot(*zip(*points, strict=True), color="0.8", linewidth=0.8)
        left.plot(*zip(*_smooth(points), strict=True), label=name)
    evals = sorted((r for r in records if r["event"] == "eval"), key=lambda r: int(r["step"]))
    for name in sorted({k for r in evals for k in r if "/" in k}):
        points = [(r["step"], r[name]["nll"]) for r in evals if name in r]
        if len(points) == 1:
            right.axhline(points[0][1], linestyle=":", label=name, color="0.4")
            right.annotate(name.rsplit("/", 1)[-1], (0, points[0][1]), fontsize=8)
        else:
            right.plot(*zip(*points, strict=True), marker="o", label=name)
    left.set(xlabel="step", ylabel="nats a token", title="training loss")
    right.set(xlabel="step", ylabel="nats a token", title="held-out answer NLL")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(run / "curves.png", dpi=120)
    plt.close(figure)
    return run / "curves.png"


def _smooth(points: list[tuple[int, float]], keep: float = 0.9) -> list[tuple[int, float]]:
    out: list[tuple[int, float]] = []
    mean = points[0][1]
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        out.append((step, mean))
    return out
