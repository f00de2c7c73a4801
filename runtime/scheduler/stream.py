"""What a caller reads of one request: pieces of text, then the answer.

In: events from the service's thread. Out: an iterator for one other thread. Pieces that nobody has read yet are
joined, so that what a slow reader leaves lying is bounded by its own answer, and no row of the engine waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ...core.errors import LatentWireError
from ..answer import Answer
from .loop import Event


class Stream:
    """``for piece in stream: ...``, then ``stream.answer``. Closed or forgotten early, its request is given up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._ended = False
        self._answer: Answer | None = None
        self.cancel: Callable[[], None] = lambda: None

    def post(self, event: Event) -> None:
        """Called by the service."""
        with self._changed:
            if isinstance(event, str) and self._events and isinstance(self._events[-1], str):
                self._events[-1] += event
            else:
                self._events.append(event)
            self._changed.notify()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next piece; waits for it.

        Raises:
            LatentWireError: what ended the request without an answer.
        """
        return self.next(None)

    def next(self, timeout: float | None) -> str:
        """As iteration, but waits at most ``timeout`` seconds. Raises TimeoutError, StopIteration."""
        with self._changed:
            if self._ended:
                raise StopIteration
            if not self._changed.wait_for(lambda: self._events, timeout):
                raise TimeoutError
            event = self._events.popleft()
            if isinstance(event, str):
                return event
            self._ended = True
        if isinstance(event, LatentWireError):
            raise event
        self._answer = event
        raise StopIteration

    def result(self) -> Answer:
        """Wait for the whole answer. Raises as iteration does."""
        for _ in self:
            pass
        if self._answer is None:
            raise RuntimeError("the stream was closed before its answer came")
        return self._answer

    def close(self) -> None:
        """Give the request up; of a finished one: nothing."""
        with self._changed:
            self._ended = True
            self._events.clear()
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
