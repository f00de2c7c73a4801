"""Texts to frames for ``/v1/compress``: one thread, which takes together what came in the meantime.

The encoder has an engine of its own, so that compressing and answering do not wait for each other.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ...core.errors import LatentWireError
from ..compress import Compressed
from ..options import CompressOptions
from ..pipeline import Pipeline
from .faults import overloaded, stopping
from .guard import Gate

Found = list[Compressed | LatentWireError]


@dataclass
class _Job:
    texts: Sequence[str]
    options: CompressOptions
    future: Future[Found] = field(default_factory=Future)


class Compressing:
    """A queue in front of one pipeline.

    Args:
        pipe: with its encoder; used by this thread only.
        waiting: most texts that wait; more are refused.
        gate: says when what runs must end.
    """

    def __init__(self, pipe: Pipeline, waiting: int, gate: Gate) -> None:
        self._pipe, self._limit, self._gate = pipe, waiting, gate
        self._jobs: deque[_Job] = deque()
        self._texts = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="latentwire-compress", daemon=True)
        self._thread.start()

    async def run(self, texts: Sequence[str], options: CompressOptions) -> Found:
        """A frame or an error for each text.

        Raises:
            LatentWireError: 5034 too many wait; 5032 the server stops; what stops a whole batch, such as 5003.
        """
        job = _Job(texts, options)
        with self._changed:
            if self._closed:
                raise stopping()
            if self._texts + len(texts) > self._limit:
                raise overloaded("texts to compress", self._limit)
            self._texts += len(texts)
            self._jobs.append(job)
            self._changed.notify()
        return await self._unless_cut(asyncio.wrap_future(job.future))

    async def _unless_cut(self, found: asyncio.Future[Found]) -> Found:
        cut = asyncio.ensure_future(self._gate.cut.wait())
        try:
            await asyncio.wait((found, cut), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise stopping()
            return found.result()
        finally:
            cut.cancel()
            found.cancel()  # of what is done: nothing

    @property
    def waiting(self) -> int:
        """Texts that wait or are compressed now."""
        return self._texts

    def close(self) -> None:
        """End after the batch that runs; what waits is answered with 5032."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            texts = [text for job in jobs for text in job.texts]
            names = [f"input {i}" for job in jobs for i in range(len(job.texts))]
            try:
                found = iter(self._pipe.compress_rows(texts, jobs[0].options, names))
                for job in jobs:
                    job.future.set_result([next(found) for _ in job.texts])
            except Exception as e:  # noqa: BLE001  also our own mistakes: the thread goes on, the request hears of it
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(e)
            with self._changed:
                self._texts -= len(texts)

    def _next(self) -> list[_Job]:
        """Jobs with the same options, about a batch of texts, without those that were given up; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                for job in self._jobs:
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_exception(stopping())
                self._texts = 0
                return []
            taken: list[_Job] = []
            count = 0
            while self._jobs and count < 16 and (not taken or self._jobs[0].options == taken[0].options):
                job = self._jobs.popleft()
                if not job.future.set_running_or_notify_cancel():
                    self._texts -= len(job.texts)
                    continue
                taken.append(job)
                count += len(job.texts)
        return taken or self._next()
