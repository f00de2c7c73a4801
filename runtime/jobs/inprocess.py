"""The backend without workers: shards one after the other, in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

from ...core.errors import LatentWireError
from .shard import Encoder
from .task import Done, Failed, JobSpec, load_plan, open_encoder, run_shard


class InProcess:
    """``--workers 0``. Opens the encoder when the first shard comes."""

    def __init__(self, open_it: Callable[[JobSpec], Encoder] = open_encoder) -> None:
        self._open = open_it
        self._encoder: Encoder | None = None

    def run(self, spec: JobSpec, shards: Iterable[int], on_rows: Callable[[int, int], None]) -> Iterator[Done | Failed]:
        """See ``task.Backend``."""
        for number in shards:
            if self._encoder is None:
                self._encoder = self._open(spec)
            try:
                facts = run_shard(spec, number, self._encoder, on_rows=functools.partial(on_rows, number))
            except LatentWireError as error:
                yield Failed(number, error)
                return
            yield Done(number, facts)

    def close(self) -> None:
        """Free the encoder, where it can be freed, and the input that is open."""
        load_plan.cache_clear()
        close = getattr(self._encoder, "close", None)
        self._encoder = None
        if close is not None:
            close()
