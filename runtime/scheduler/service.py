"""One thread that answers the requests of many others.

    with Service(pipe.engine, pipe.tokenizer, rows=16, waiting=256) as service:
        with service.submit(request, options) as stream:
            for piece in stream: ...

Thread-safe. What waits is bounded: over the bound a request is refused at once. Callers make their requests
(tokenizing, decoding of frames) in their own threads; the engine belongs to the service until it is closed.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

from ...core.errors import EnvironmentFault, LatentWireError
from ...engines.base import Engine
from ..options import GenerateOptions
from ..request import Request, Sizes
from ..tokenizer import TextTokenizer
from .loop import Event, Loop, limits_of
from .stream import Stream

ROOM: Final = 128
"""Cache slots are cut in steps of this many, so that most requests fit the rows that are there."""
LOOK: Final = 16
"""Jobs that may be preferred because they are about as long as the oldest."""


@dataclass
class _Order:
    """One request before the loop has it. ``key``: the loop's name for it, once it has one."""

    request: Request
    options: GenerateOptions
    emit: Callable[[Event], None]
    key: int | None = None
    gone: bool = False


class Service:
    """Answers on one engine.

    Args:
        engine: used by nobody else while the service is open; not closed with it.
        tokenizer: the LLM's.
        rows: most requests that run at once.
        waiting: most requests that wait for a row.
        kv_bytes: most memory for keys and values.
        refill_at: as ``state.Limits.refill_at``.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        *,
        rows: int = 16,
        waiting: int = 256,
        kv_bytes: int = 512 << 20,
        refill_at: int = 1,
    ) -> None:
        options = GenerateOptions(batch_size=rows, kv_bytes=kv_bytes)
        limits = limits_of(engine, options, online=True, step=ROOM, look=LOOK, refill_at=refill_at)
        self._sizes, self._limit = Sizes(engine), waiting
        self._loop = Loop(engine, tokenizer, limits)
        self._changed = threading.Condition()
        self._new: deque[_Order] = deque()
        self._gone: list[_Order] = []
        self._closing: LatentWireError | None = None
        self._finish = False
        self._thread = threading.Thread(target=self._work, name="latentwire-engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that hold a row."""
        return self._loop.scheduler.running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._new) + self._loop.scheduler.waiting

    def submit(self, request: Request, options: GenerateOptions) -> Stream:
        """Ask for one answer; see ``Stream``. Options of memory and batch are the service's own.

        Raises:
            RowError: 2006 no room for the answer.
            EnvironmentFault: 5034 too many requests wait; 5032 the service is closed.
        """
        stream = Stream()
        heard = weakref.WeakMethod(stream.post)

        def emit(event: Event) -> None:
            if post := heard():
                post(event)

        stream.cancel = self.send(request, options, emit)
        weakref.finalize(stream, stream.cancel).atexit = False  # nobody can read it any more
        return stream

    def send(
        self, request: Request, options: GenerateOptions, emit: Callable[[Event], None], where: str = "prompt"
    ) -> Callable[[], None]:
        """As ``submit``, with events through ``emit`` from the service's thread; returns what cancels.

        ``emit`` must return at once; when it raises, the request is given up.
        """
        self._sizes.check(request, options, where)
        order = _Order(request, options, emit)
        with self._changed:
            if self._closing:
                raise self._closing
            if self.waiting >= self._limit:
                expected = f"expected at most {self._limit} requests that wait"
                raise EnvironmentFault(5034, "too many requests wait", expected=expected, fix="try again later")
            self._new.append(order)
            self._changed.notify()
        return lambda: self._cancel(order)

    def close(self, finish: bool = False) -> None:
        """Take no more requests and stop. What is left ends with an error; with ``finish`` it is answered first."""
        with self._changed:
            stopped = EnvironmentFault(5032, "service is stopping", fix="send the request again to the next server")
            self._closing = self._closing or stopped
            self._finish = finish
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finish=kind is None)

    def _cancel(self, order: _Order) -> None:
        with self._changed:
            order.gone = True
            self._gone.append(order)
            self._changed.notify()

    def _work(self) -> None:
        try:
            while self._take_orders():
                self._loop.step()
            error = self._closing
        except Exception as e:  # noqa: BLE001
            # A fault of our own must not leave callers waiting for ever.
            error = EnvironmentFault(5037, "the engine stopped", expected=f"{type(e).__name__}: {e}")
        with self._changed:
            self._closing = error
            orders, self._new = list(self._new), deque()
        if error:
            self._loop.fail(error)
            for order in orders:
                _told(order, error)

    def _take_orders(self) -> bool:
        """Wait for work; False when there is no more to come."""
        scheduler = self._loop.scheduler
        with self._changed:
            while True:
                self._drop_gone()
                self._admit()
                busy = scheduler.running or scheduler.waiting
                if self._closing and not (self._finish and busy):
                    return False
                if busy:
                    return True
                self._changed.wait()

    def _drop_gone(self) -> None:
        while self._gone:
            order = self._gone.pop()
            if order.key is not None:
                self._loop.cancel(order.key)

    def _admit(self) -> None:
        while self._new:
            order = self._new.popleft()
            if not order.gone:
                order.key = self._loop.add(order.request, order.options, partial(self._tell, order))

    def _tell(self, order: _Order, event: Event) -> None:
        if not order.gone and not _told(order, event):
            self._cancel(order)


def _told(order: _Order, event: Event) -> bool:
    """Whether somebody heard it."""
    try:
        order.emit(event)
    except Exception:  # noqa: BLE001
        return False
    return True
