"""An engine that counts what is asked of it: calls, positions, padding, and memory that a step takes anew.

Stands in front of any engine and changes nothing. Used by the timed processes and by the guard of counts.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import Any, cast

import numpy as np

from ..engines.base import F32, I64, Engine
from ..engines.buffers import Buffers


class CountedEngine:
    """Passes everything on to ``inner``. ``counts``: what was asked so far, see the methods below."""

    def __init__(self, inner: Engine, beside: CountedEngine | None = None) -> None:
        self._inner = inner
        self.counts: Counter[str] = beside.counts if beside else Counter()
        self._one_at_a_time: Lock = beside._one_at_a_time if beside else Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def lanes(self) -> list[Engine]:
        """The inner engine's; what they are asked counts here."""
        return [cast(Engine, CountedEngine(lane, self)) for lane in self._inner.lanes()]

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        """Counts ``encode_calls``, ``encode_real`` and ``encode_padded`` positions."""
        self._add("encode", int(lengths.sum()), input_ids.size)
        return self._inner.encode(input_ids, lengths, latents)

    def adapt(self, latents: F32) -> F32:
        """Counts ``adapt_calls``."""
        self._count(adapt_calls=1)
        return self._inner.adapt(latents)

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """Counts ``splice_calls``."""
        self._count(splice_calls=1)
        return self._inner.splice(input_ids, row_index, rows)

    def alloc(self, batch: int, capacity: int) -> Buffers:
        """Counts ``alloc_calls`` and ``alloc_bytes`` of the key/value cache."""
        made = self._inner.alloc(batch, capacity)
        self._count(alloc_calls=1, alloc_bytes=sum(cache.nbytes for cache in made.cache.values()))
        return made

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64, *more: Any, **named: Any) -> None:
        """Counts ``prefill_calls``, ``prefill_real`` and ``prefill_padded`` positions, ``head_positions``."""
        self._add("prefill", int(lengths.sum()), int(np.prod(inputs_embeds.shape[:2])))
        self._count(head_positions=len(lengths))
        self._inner.prefill(buffers, inputs_embeds, lengths, *more, **named)

    def decode(self, buffers: Buffers) -> None:
        """Counts ``decode_calls``, ``decode_rows``, ``head_positions``."""
        self._count(decode_calls=1, decode_rows=buffers.batch, head_positions=buffers.batch)
        self._inner.decode(buffers)

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        with self._one_at_a_time:
            taken = dict(sorted(self.counts.items()))
            self.counts.clear()
        return taken

    def _add(self, what: str, real: int, padded: int) -> None:
        self._count(**{f"{what}_calls": 1, f"{what}_real": real, f"{what}_padded": padded})

    def _count(self, **more: int) -> None:
        with self._one_at_a_time:
            self.counts.update(more)


def counted(engine: Engine) -> tuple[Engine, CountedEngine]:
    """The same object twice: as an engine, and as what counts."""
    found = CountedEngine(engine)
    return cast(Engine, found), found
