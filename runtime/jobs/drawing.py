"""Histograms as SVG that stands inside an HTML page: no script, no font, no file of its own."""

from __future__ import annotations

from typing import Final

from .spread import Spread, bin_of, bin_width

BARS: Final = 32
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520, 170, 52, 24, 8
_STEEP: Final = 16
"""Largest by median from which bars are drawn per quarter of a doubling instead of evenly."""
_COARSE_BITS: Final = 3


def bars(spread: Spread) -> list[tuple[int, int, int]]:
    """First number, number behind the last, count: of neighbouring bars from the smallest to the largest number.

    Bars end where bins end, so that a count never falls between two of them.
    """
    if spread.low is None or spread.high is None:
        return []
    low, high = spread.low, spread.high
    edges = [bin_of(low)]
    if high > _STEEP * max(spread.percentile(50), 1):
        edges = [bin_of(low, _COARSE_BITS)]
        while edges[-1] <= high:
            edges.append(edges[-1] + bin_width(edges[-1], _COARSE_BITS))
    else:
        unit = bin_width(high)
        step = -(-(high - low + 1) // (BARS * unit)) * unit
        edges = [low // step * step]
        while edges[-1] <= high:
            edges.append(edges[-1] + step)
    counts = [0] * (len(edges) - 1)
    at = 0
    for first in sorted(spread.counts):
        while first >= edges[at + 1]:
            at += 1
        counts[at] += spread.counts[first]
    return list(zip(edges[:-1], edges[1:], counts, strict=True))


def histogram(spread: Spread, label: str, unit: str, scale: int = 1) -> str:
    """An ``<svg>`` of the rows' spread.

    Args:
        spread: the numbers.
        label: what a screen reader says; plain words of ours.
        unit: behind the numbers of the axis; plain words of ours.
        scale: what the numbers are divided by when they are shown.
    """
    found = bars(spread)
    if not found:
        return "<p>No row was compressed.</p>"
    tall, wide = HEIGHT - BOTTOM - TOP, WIDTH - LEFT - 8
    most, floor = max(count for _, _, count in found), HEIGHT - BOTTOM
    each = wide / len(found)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for i, (first, end, count) in enumerate(found):
        high = tall * count / most
        box = f'x="{LEFT + i * each:.2f}" y="{floor - high:.2f}" width="{max(each - 1, 0.5):.2f}" height="{high:.2f}"'
        said = _number(first, scale) if end - first == 1 else f"{_number(first, scale)} to {_number(end - 1, scale)}"
        parts.append(f"<rect {box}><title>{said} {unit}: {count:,} rows</title></rect>")
    parts.append(f'<line x1="{LEFT}" y1="{floor}" x2="{WIDTH - 8}" y2="{floor}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{TOP + 9}" text-anchor="end">{most:,}</text>')
    parts.append(f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">0</text>')
    middle = len(found) // 2
    ticks: list[tuple[float, int, str]] = [(LEFT, found[0][0], "start"), (WIDTH - 8, found[-1][1] - 1, "end")]
    ticks += [(LEFT + middle * each, found[middle][0], "middle")] if len(found) > 2 else []
    for x, value, anchor in ticks:
        parts.append(f'<text x="{x:.2f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_number(value, scale)}</text>')
    return "".join(parts) + "</svg>"


def _number(value: int, scale: int) -> str:
    return f"{value:,}" if scale == 1 else f"{value / scale:,.2f}"
