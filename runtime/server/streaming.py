"""Answers as server-sent events.

Before the first event is known the status is still open, so that a prompt that cannot be answered gets its 400;
after that an error is an event of the stream, in the shape that OpenAI's client raises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Self

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ...core.errors import LatentWireError
from ..answer import Answer
from .faults import body_of
from .guard import ClientGone
from .metrics import Metrics
from .replies import DONE, Reply, event


class EventStream(StreamingResponse):
    """``text/event-stream``; what makes the events is closed with it, however it ends."""

    def __init__(self, events: AsyncGenerator[bytes, None], head: bytes) -> None:
        self._events = events
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_after(head, events), media_type="text/event-stream", headers=headers)

    @classmethod
    async def begun(cls, events: AsyncGenerator[bytes, None]) -> Self:
        """Wait for the first event; errors before it are raised."""
        return cls(events, await anext(events))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def events_of(
    answers: AsyncGenerator[tuple[int, str | Answer], None],
    reply: Reply,
    n: int,
    choices: int,
    counts: bool,
    metrics: Metrics,
) -> AsyncGenerator[bytes, None]:
    """Events of all choices; pieces of several choices alternate as they come.

    Args:
        answers: of ``Answering.run``.
        reply: what every event carries.
        n: choices of each prompt.
        choices: all of them.
        counts: end with the usage.
        metrics: hears of an error that comes too late for a status.
    """
    done: dict[int, Answer] = {}
    begun: set[int] = set()
    try:
        async for index, found in answers:
            if reply.is_chat and index not in begun:
                yield event(reply.begin(index))
            begun.add(index)
            if isinstance(found, Answer):
                done[index] = found
                yield event(reply.end(index, found.stop))
            else:
                yield event(reply.piece(index, found))
    except LatentWireError as error:
        if not begun:
            raise
        metrics.refused(error)
        yield event(body_of(error))
        return
    except ClientGone:
        if not begun:
            raise
        return
    finally:
        await answers.aclose()
    if counts:
        yield event(reply.counts([done[i] for i in range(choices)], n))
    yield DONE


async def _after(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for part in rest:
        yield part
