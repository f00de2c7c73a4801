"""One request's answers as they come: many choices merged, with a deadline, and given up when nobody listens.

Events come from the backend's thread and pass into the event loop; they wait in a queue that the token limit
bounds, so that a client that reads slowly holds no row of the engine.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.errors import EnvironmentFault, LatentWireError
from ..answer import Answer
from ..options import GenerateOptions
from ..pipeline import Pipeline
from ..scheduler.loop import Event
from ..scheduler.service import Service
from .faults import ParamError, out_of_time, overloaded, stopping
from .guard import ClientGone, Gate
from .intake import prepared
from .metrics import Metrics
from .pace import Pace
from .prompts import Asked
from .settings import Limits


class Answering:
    """Answers for all requests of a server.

    Args:
        service: makes them.
        reader: makes prompts of them, in a thread of its own.
        gate: says when what runs must end.
        limits: of the server.
        metrics: hears of first tokens and finished answers.
    """

    def __init__(self, service: Service, reader: Pipeline, gate: Gate, limits: Limits, metrics: Metrics) -> None:
        self._service, self._reader = service, reader
        self._gate, self._limits, self._metrics = gate, limits, metrics
        # Tokenising and decoding frames is short, but not so short that the event loop should wait for it.
        self._intake = ThreadPoolExecutor(1, "latentwire-intake")
        self._held = 0
        self._pace = Pace()

    def close(self) -> None:
        """Stop the thread that makes prompts."""
        self._intake.shutdown(cancel_futures=True)

    async def run(
        self, asked: Sequence[tuple[Asked, GenerateOptions]], gone: Coroutine[Any, Any, None]
    ) -> AsyncGenerator[tuple[int, str | Answer], None]:
        """``(choice, what came of it)`` until all are finished.

        Args:
            asked: one entry a choice.
            gone: returns when the client has left.

        Raises:
            ParamError: a prompt that cannot be answered.
            LatentWireError: 5034 too many are held; the first choice that fails, the others are given up.
            ClientGone: nobody is there to read.
        """
        events: asyncio.Queue[tuple[int, Event | ClientGone]] = asyncio.Queue()
        most = self._limits.rows + self._limits.waiting
        if self._held + len(asked) > most:  # before the intake's queue, so that the answer comes at once
            gone.close()
            raise overloaded("answers", most, self._pace.seconds(self._held // 2))
        loop, seconds = asyncio.get_running_loop(), self._limits.request_s
        deadline = loop.call_later(seconds, events.put_nowait, (-1, out_of_time(seconds)))
        ends = [_then(gone, events, ClientGone()), _then(_set(self._gate.cut), events, stopping())]
        tickets = _Tickets()
        self._held += len(asked)
        try:
            await loop.run_in_executor(self._intake, self._submit, asked, tickets, _posting(loop, events))
            async for found in self._events(events, len(asked)):
                yield found
        finally:
            self._held -= len(asked)
            tickets.close()
            deadline.cancel()
            for end in ends:
                end.cancel()

    async def _events(
        self, events: asyncio.Queue[tuple[int, Event | ClientGone]], unfinished: int
    ) -> AsyncGenerator[tuple[int, str | Answer], None]:
        began, first = time.monotonic(), True
        while unfinished:
            index, event = await events.get()
            if isinstance(event, Exception):
                raise event
            if first:
                self._metrics.first(time.monotonic() - began)
                first = False
            if isinstance(event, Answer):
                unfinished -= 1
                self._pace.ended()
                self._metrics.answered(event.stop, event.prompt_positions, event.new_tokens)
            yield index, event

    def _submit(
        self, asked: Sequence[tuple[Asked, GenerateOptions]], tickets: _Tickets, post: Callable[[int, Event], None]
    ) -> None:
        for index, (prompt, options) in enumerate(asked):
            try:
                request = prepared(self._reader, prompt, options)
                tickets.add(self._service.send(request, options, functools.partial(post, index), prompt.param))
            except EnvironmentFault:
                raise
            except LatentWireError as e:
                raise ParamError(e, prompt.param) from e


class _Tickets:
    """What cancels the choices of one request; safe between the intake's thread and the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: list[Callable[[], None]] = []
        self._closed = False

    def add(self, cancel: Callable[[], None]) -> None:
        with self._lock:
            if not self._closed:
                self._cancels.append(cancel)
                return
        cancel()

    def close(self) -> None:
        with self._lock:
            self._closed, cancels = True, self._cancels
        for cancel in cancels:  # of a finished choice: nothing
            cancel()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _then(
    happens: Coroutine[Any, Any, None], events: asyncio.Queue[tuple[int, Event | ClientGone]], what: Event | ClientGone
) -> asyncio.Task[None]:
    async def tell() -> None:
        await happens
        events.put_nowait((-1, what))

    return asyncio.ensure_future(tell())


def _posting(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event | ClientGone]]
) -> Callable[[int, Event], None]:
    def post(index: int, event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (index, event))  # raises where the loop is closed: given up

    return post
