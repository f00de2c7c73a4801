"""Charts of reports: one PNG, one panel for each curve that the reports hold.

In: reports as JSON objects. Out: a file. Draws what was measured and computes nothing but a roofline's line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.extras import needs

Panel = Callable[[Any], None]


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the PNG.

    Raises:
        EnvironmentFault: 5011 matplotlib is not installed.
    """
    with needs("bench"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    panels = [panel for report in reports for panel in _panels(report)]
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(8 * columns, 4.6 * rows), squeeze=False, layout="constrained"
    )
    flat = [axis for line in axes for axis in line]
    for panel, axis in zip(panels, flat, strict=False):
        panel(axis)
    for axis in flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(_title(reports))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _title(reports: Sequence[Mapping[str, Any]]) -> str:
    if not reports:
        return "nothing measured"
    found = reports[0]["machine"]
    quick = "  QUICK: no figures, a rehearsal" if reports[0].get("sizes", {}).get("quick") else ""
    return f"{found['cpu']}, {found['processors']} processors, {reports[0]['date'][:10]}{quick}"


def _panels(report: Mapping[str, Any]) -> list[Panel]:
    data = report["data"]
    if report["kind"] == "throughput":
        found: list[Panel] = [lambda axis: _bars(axis, data["rows"])]
        if any(len(tried) > 1 for tried in data["batches"].values()):
            found.append(lambda axis: _batches(axis, data))
        return found
    if report["kind"] == "scaling":
        return [lambda axis, n=name, p=points: _curve(axis, n, p) for name, points in data["curves"].items()]  # type: ignore[misc]
    if report["kind"] == "latency" and data["rows"]:
        return [lambda axis: _latency(axis, data["rows"])]
    if report["kind"] == "simulate":
        return [lambda axis: _waits(axis, data)]
    return []


def _bars(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    # Compressing is another unit of work and many times faster: it would flatten all other bars.
    ordered = sorted((r for r in rows if r["workload"] != "W2"), key=lambda r: r["samples_per_min"]["median"])
    names = [f"{r['contender']}: {r['workload']}" for r in ordered]
    medians = [r["samples_per_min"]["median"] for r in ordered]
    low = [m - r["samples_per_min"]["min"] for m, r in zip(medians, ordered, strict=True)]
    high = [r["samples_per_min"]["max"] - m for m, r in zip(medians, ordered, strict=True)]
    colours = ["tab:blue" if r["contender"].startswith("latentwire") else "tab:gray" for r in ordered]
    axis.barh(names, medians, xerr=[low, high], color=colours, capsize=3)
    for place, median in enumerate(medians):
        axis.annotate(f" {median:,.0f}", (median, place), va="bottom", fontsize=8)
    axis.set_xlabel("samples a minute, wall clock: median, least, most")
    axis.set_title("throughput, each at its best batch")
    axis.tick_params(axis="y", labelsize=8)
    axis.margins(x=0.12)


def _batches(axis: Any, data: Mapping[str, Any]) -> None:
    for name, tried in data["batches"].items():
        points = sorted((int(b), f["samples_per_min"]["median"]) for b, f in tried.items())
        if points:
            own = name.startswith("latentwire")
            axis.plot(*zip(*points, strict=True), marker="o", linewidth=2 if own else 1, label=name)
    for name, found in (data.get("roofline") or {}).get("workloads", {}).items():
        points = sorted((int(b), rate) for b, rate in found["ceiling"].items())
        axis.plot(*zip(*points, strict=True), linestyle=":", color="black", label=f"roofline fp32: {name}")
    _logarithmic(axis, "batch", "samples a minute against batch")


def _curve(axis: Any, name: str, points: Sequence[Mapping[str, Any]]) -> None:
    sound = [p for p in points if "failed" not in p]
    for workload in dict.fromkeys(p["workload"] for p in sound):
        line = sorted((p["x"], p["samples_per_min"]["median"]) for p in sound if p["workload"] == workload)
        axis.plot(*zip(*line, strict=True), marker="o", label=workload)
    _logarithmic(axis, name.replace("_", " "), f"samples a minute against {name.replace('_', ' ')}")


def _logarithmic(axis: Any, x: str, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(lambda value, place: f"{value:,g}")
    low, high = axis.get_ylim()
    if high < 20 * low:  # too few decades for ticks at powers of ten alone
        axis.yaxis.set_minor_formatter(lambda value, place: f"{value:,g}")
    axis.set_xlabel(x)
    axis.set_ylabel("samples a minute")
    axis.set_title(title)
    axis.grid(True, which="both", alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _latency(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{r['contender']}: {r['workload']}" for r in rows]
    axis.barh(names, [r["answer_ms"]["p50"] for r in rows], color="tab:blue", label="whole answer, p50")
    axis.barh(names, [r["first_token_ms"]["p50"] for r in rows], color="tab:orange", label="first token, p50")
    axis.set_xlabel("milliseconds, one request at a time")
    axis.set_title("latency")
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(fontsize=7)


def _waits(axis: Any, data: Mapping[str, Any]) -> None:
    names = list(data["policies"])
    for offset, (what, colour) in enumerate((("p50", "tab:blue"), ("p99", "tab:orange"))):
        values = [data["policies"][name]["answer_ms"][what] or 0 for name in names]
        axis.barh([i + 0.4 * offset for i in range(len(names))], values, 0.4, color=colour, label=what)
    axis.set_yticks([i + 0.2 for i in range(len(names))], names)
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds from arrival to the whole answer, simulated")
    axis.set_title(f"{data['trace']}, {data['rate']:,.1f} requests a second")
    axis.legend(fontsize=7)
