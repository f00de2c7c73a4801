"""Quality against tokens and against bytes, as a picture: an LLM a row, NLL and F1 against both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from .kinds import LATENT, QUERY_AWARE, parse

TEXT_FORMS = ("utf8", "zlib", "zstd")
COLOURS = {"latents": "tab:red", "shuffled": "tab:orange", "start": "tab:pink", "text": "tab:blue", "mean": "tab:grey"}


def points(rows: Mapping[str, Any], measure: str, against: str) -> list[tuple[float, float, str, str]]:
    """x, y, label and group of every row that has both.

    Args:
        rows: kind -> figures.
        measure: ``nll`` or ``f1``.
        against: ``tokens``, or ``bytes``: the smallest form of a text, the row's codec of latents (f32 rows: f16).
    """
    out = []
    for name, row in rows.items():
        kind = parse(name)
        if row.get(measure) is None or kind.tuned is not None:
            continue
        group = kind.base if kind.base in LATENT else "mean" if kind.base.startswith("mean") else "text"
        label = name + ("*" if kind.base in QUERY_AWARE else "")
        if against == "tokens":
            out.append((row["context_positions"], row[measure], label, group))
            continue
        sizes = row["bytes"]
        forms = [f for f in sizes if f.startswith(("frame", "rows")) and "text" not in f]
        forms = [f for f in forms if f" {kind.codec or 'f16'}" in f]
        if group == "text":
            smallest = min(TEXT_FORMS, key=lambda f: sizes.get(f, 0))
            out.append((sizes.get(smallest, 0), row[measure], label, group))
        else:
            out += [(sizes[f], row[measure], label, group) for f in forms]
    return out


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the picture of one report."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    llms = found["llms"]
    measures = [m for m in ("nll", "f1") if any(m in row for of in llms.values() for row in of["rows"].values())]
    figure, axes = plt.subplots(
        len(llms),
        2 * len(measures),
        figsize=(6.5 * 2 * len(measures), 5.2 * len(llms)),
        layout="constrained",
        squeeze=False,
    )
    for line, (name, of) in zip(axes, llms.items(), strict=True):
        panels = [(m, a) for m in measures for a in ("tokens", "bytes")]
        for axis, (measure, against) in zip(line, panels, strict=True):
            _panel(axis, of["rows"], measure, against)
            better = "lower is better" if measure == "nll" else "higher is better"
            axis.set(title=f"{name}: {measure.upper()} ({better})")
    note = "text: smallest of plain, zlib and zstd bytes. * chosen with the question at hand"
    protocol = found["protocol"]["name"]
    figure.suptitle(f"{found['questions']} questions, protocol {protocol}, 95 % intervals. {note}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, rows: Mapping[str, Any], measure: str, against: str) -> None:
    shown = sorted(points(rows, measure, against))
    for x, y, label, group in shown:
        ci = rows[label.rstrip("*")].get(f"{measure}_ci") or [y, y]
        error = [[max(0.0, y - ci[0])], [max(0.0, ci[1] - y)]]
        axis.errorbar(x, y, error, fmt="o", color=COLOURS[group], alpha=0.8, capsize=2)
    _label(axis, shown)
    axis.set_xscale("symlog", linthresh=10)
    axis.margins(x=0.15)
    axis.set(xlabel="context positions (LLM tokens)" if against == "tokens" else "bytes on the wire")
    axis.set(ylabel="nats a token" if measure == "nll" else "F1")
    axis.grid(alpha=0.3)


def _label(axis: Any, shown: list[tuple[float, float, str, str]]) -> None:
    """Names beside the points; where points crowd at one place the names go up in steps."""
    values = [y for _, y, _, _ in shown]
    line = 0.04 * (max(values, default=1.0) - min(values, default=0.0) or 1.0)
    taken: list[tuple[float, float]] = []
    for x, y, label, _ in sorted(shown, key=lambda p: p[1]):
        steps = 0
        while any(abs(y + steps * line - other) < line and 0.3 < (x + 3) / (o + 3) < 3.3 for o, other in taken):
            steps += 1
        taken.append((x, y + steps * line))
        text = axis.annotate(label, (x, y), xytext=(7, 9 * steps), textcoords="offset points", fontsize=7, va="center")
        text.set_in_layout(False)  # the layout would shrink the panel for a name at its edge
