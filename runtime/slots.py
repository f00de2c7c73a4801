"""Which request runs when and in which row. No arrays, no text.

In: the length of every request. Out: micro-batches of neighbours in length, and a record of rows still running.
"""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], batch_size: int, positions: int | None = None) -> list[list[int]]:
    """Indices of requests in batches, longest first, so that little is padded and memory peaks at the start.

    Args:
        lengths: positions that each request needs.
        batch_size: most requests in a batch.
        positions: most positions of a batch, padding included; one request may exceed it alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        batch = batches[-1] if batches else []
        room = positions is None or (len(batch) + 1) * (lengths[batch[0]] if batch else 0) <= positions
        if batch and len(batch) < batch_size and room:
            batch.append(index)
        else:
            batches.append([index])
    return batches


class Slots:
    """Rows of one running batch: row ``r`` holds request ``requests[r]`` until it is finished."""

    def __init__(self, requests: Sequence[int]) -> None:
        self.requests = tuple(requests)
        self._running = dict.fromkeys(range(len(requests)))

    @property
    def running(self) -> list[int]:
        """Rows that still want tokens, in order."""
        return list(self._running)

    def finish(self, row: int) -> None:
        """This row is done; whatever the engine still computes for it is not read."""
        del self._running[row]
