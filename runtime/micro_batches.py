"""Texts in batches of neighbours in length. No arrays, no text."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of texts in batches, longest first, so that little is padded and memory peaks at the start."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
