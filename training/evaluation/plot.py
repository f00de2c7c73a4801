"""Quality against tokens and against bytes, as a picture: NLL and F1 of every row."""

from __future__ import annotations

import math
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
    """Write the picture of one report: two panels a line, tokens and bytes; a line for each LLM and measure."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    llms = found["llms"]
    lines = [(n, m) for n, of in llms.items() for m in ("nll", "f1") if any(m in row for row in of["rows"].values())]
    figure, axes = plt.subplots(
        len(lines), 2, figsize=(14, 5.5 * len(lines)), layout="constrained", squeeze=False, sharey="row"
    )
    for line, (name, measure) in zip(axes, lines, strict=True):
        better = "lower is better" if measure == "nll" else "higher is better"
        for axis, against in zip(line, ("tokens", "bytes"), strict=True):
            _panel(axis, llms[name]["rows"], measure, against)
            axis.set(title=f"{name}: {measure.upper()} ({better})")
    note = "text: smallest of plain, zlib and zstd bytes. * chosen with the question at hand"
    protocol = found["protocol"]["name"]
    figure.suptitle(f"{found['questions']} questions, protocol {protocol}, 95 % intervals. {note}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _panel(axis: Any, rows: Mapping[str, Any], measure: str, against: str) -> None:
    shown = sorted(points(rows, measure, against))
    top = _ceiling(rows) if measure == "nll" else 1.0
    for x, y, label, group in shown:
        ci = rows[label.rstrip("*")].get(f"{measure}_ci") or [y, y]
        low, high = (min(top, v) for v in ci)
        at = min(top, y)
        error = [[max(0.0, at - low)], [max(0.0, high - at)]]
        shape = "o" if y <= top else "^"
        axis.errorbar(x, at, error, fmt=shape, color=COLOURS[group], alpha=0.8, capsize=2, elinewidth=0.8)
    _label(axis, [(x, min(top, y), label if y <= top else f"{label} {y:.1f}") for x, y, label, _ in shown])
    axis.set_xscale("symlog", linthresh=10)
    axis.margins(x=0.2)
    axis.set(xlabel="context positions (LLM tokens)" if against == "tokens" else "bytes on the wire")
    axis.set(ylabel="nats a token" if measure == "nll" else "F1")
    axis.grid(alpha=0.3)


def _ceiling(rows: Mapping[str, Any]) -> float:
    """Worse than no text by a fifth is off the scale: such a row would flatten all others."""
    none = rows.get("none", {})
    worst: float = 1.2 * none["nll"] if "nll" in none else float("inf")
    return worst


def _label(axis: Any, shown: list[tuple[float, float, str]]) -> None:
    """Names to the right of the points; where points stand in one column the names are spread and tied to them."""
    values = [y for _, y, _ in shown]
    height = max(values, default=1.0) - min(values, default=0.0) or 1.0
    step = 0.055 * height
    free: dict[int, float] = {}
    for x, y, label in sorted(shown, key=lambda p: p[1]):
        # Columns a factor of two wide: names of neighbours in one of them would lie upon each other.
        column = round(math.log2(x + 1))
        at = max(y, *(free[c] for c in (column - 1, column, column + 1) if c in free), y)
        free[column] = at + step
        text = axis.annotate(
            label,
            (x, y),
            xytext=(22, 0.9 * 280 * (at - y) / height),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5},
        )
        text.set_in_layout(False)  # the layout would shrink the panel for a name at its edge
