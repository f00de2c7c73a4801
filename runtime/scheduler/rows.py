"""The rows of one pool on an engine: prompts read into free rows, one more token for a range of them.

In: requests and the rows they were given. Out: tokens and logits. Knows no queue, no text and no stop rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...engines.base import F32, Engine
from ...engines.buffers import Buffers
from ...engines.prefix import latent_prefix, prefill_with
from ..adapt import adapt
from ..micro_batches import pieces
from ..request import Request, Sizes
from ..splice import embeddings, splice


class Rows:
    """Memory of a pool; kept for the next one where it has the same size."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sizes = Sizes(engine)
        self._crossed = "cross" in engine.bundle.manifest.graphs
        self._buffers: Buffers | None = None
        self._views: dict[tuple[int, int], Buffers] = {}

    @property
    def buffers(self) -> Buffers:
        """Of the open pool."""
        assert self._buffers is not None
        return self._buffers

    def open(self, rows: int, capacity: int) -> None:
        """Make room for so many rows of so many cache slots. Raises as ``Engine.alloc``."""
        held = self._buffers
        if held is None or (held.batch, held.capacity) != (rows, capacity):
            self.drop()  # free the old ones first
            self._buffers = self._engine.alloc(rows, capacity)

    def drop(self) -> None:
        """Forget the memory: what a failed step left in it may be anything."""
        self._buffers = None
        self._views = {}

    def prefill(self, placed: Sequence[tuple[int, Request]]) -> None:
        """Read prompts into their rows; other rows stay as they are.

        Raises:
            LatentError: 3001, 3002 as ``Engine.prefill``.
            EnvironmentFault: 5003.
        """
        requests = [request for _, request in placed]
        rows, latents = adapt(self._engine, [r.latents for r in requests])
        embeds, lengths = splice(self._engine, [self._sizes.layout(r, latents.shape[1]) for r in requests], rows)
        if self._crossed:
            self.buffers.cross, self._views = self._engine.cross(latents), {}
        held = [len(r.latents) for r in requests]
        prefix = latent_prefix(self._engine, latents, held) if any(held) else None
        if prefix is not None:
            prefill_with(self._engine, self.buffers, embeds, lengths, prefix)
            return
        for first, start, stop in _runs([row for row, _ in placed]):
            part = lengths[first : first + stop - start]
            for begin, end in pieces(part.tolist(), len(part), self._engine.fill):
                own, longest = slice(first + begin, first + end), int(part[begin:end].max())
                self._engine.prefill(self._range(start + begin, start + end), embeds[own, :longest], lengths[own])

    def decode(self, start: int, stop: int, idle: Sequence[int]) -> None:
        """One more token for these rows. Raises as ``Engine.decode``."""
        buffers = self.buffers
        if not isinstance(buffers.cache, dict):  # on a device a range costs copies and captures of its own
            start, stop, idle = 0, buffers.batch, [*range(start), *idle, *range(stop, buffers.batch)]
        for row in idle:
            buffers.lengths[row] = 1  # it takes part, and must not run out of slots
        self._engine.decode(self._range(start, stop))

    def tokens(self) -> list[int]:
        """The greedy choice of every row."""
        found: list[int] = self.buffers.next_token.tolist()
        return found

    def logits(self, rows: Sequence[int]) -> F32:
        """Float32 [n,V] of these rows."""
        return self.buffers.logits[list(rows)]

    def choose(self, chosen: Mapping[int, int]) -> None:
        """Let rows go on from other tokens than the greedy ones."""
        buffers = self.buffers
        for row, token in chosen.items():
            buffers.next_token[row] = token  # an engine may read either
        buffers.feed(embeddings(self._engine, buffers.next_token[:, None].copy()))

    def bad(self, rows: Sequence[int]) -> list[int]:
        """Those whose logits are not finite."""
        broken = np.flatnonzero(~np.isfinite(self.logits(rows).sum(axis=1, dtype=np.float64)))
        return [rows[i] for i in broken.tolist()]

    def _range(self, start: int, stop: int) -> Buffers:
        if (start, stop) == (0, self.buffers.batch):
            return self.buffers
        if (start, stop) not in self._views:
            self._views[start, stop] = self.buffers.rows(start, stop)
        return self._views[start, stop]


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbouring rows as ``(index of the first, start, stop)``."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield first, rows[first], rows[i - 1] + 1
            first = i
