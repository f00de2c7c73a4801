"""Texts in batches of neighbours in length. No arrays, no text."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], batch_size: int, fill: int = 0) -> list[list[int]]:
    """Indices of texts in batches, longest first, so that little is padded and memory peaks at the start.

    Args:
        lengths: positions of each text.
        batch_size: most texts of a batch.
        fill: see ``Engine.fill``.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    parts = pieces([lengths[i] for i in order], batch_size, fill)
    return [order[start:stop] for start, stop in parts]


def pieces(lengths: Sequence[int], most: int, fill: int = 0) -> list[tuple[int, int]]:
    """``(start, stop)`` of neighbours that run together: at most ``most``, no more than fill a call, at least one."""
    out, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start == most or (fill and (i - start + 1) * longest > fill)):
            out.append((start, i))
            start, longest = i, length
    return [*out, (start, len(lengths))] if lengths else []
