"""Prompts to answers, a list at a time.

In: requests (a context as latents or tokens, and question tokens). Out: answers, or pieces of them as they come.
Results do not depend on the requests that run beside them. Knows nothing of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ..core.errors import LatentWireError
from ..engines.base import Engine
from .answer import Answer
from .options import GenerateOptions
from .request import Request, Sizes
from .scheduler.loop import Event, Loop, limits_of
from .scheduler.rows import Rows
from .tokenizer import TextTokenizer


class Generator:
    """Generation on one engine. Keeps the buffers of one list for the next one."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._sizes, self._rows = Sizes(engine), Rows(engine)
        self._most: int | None = None

    def answers(
        self,
        requests: Sequence[Request],
        options: GenerateOptions,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer | LatentWireError]:
        """One answer or one error per request, in the order given.

        Args:
            requests: prompts that fit, see ``check``.
            options: limits, stop rules and draws; request i draws as stream i of the seed.
            done: hears how many requests a step finished.

        Raises:
            EnvironmentFault: 5003 not even one row fits.
            LatentError: 3002.
        """
        out: list[Answer | LatentWireError | None] = [None] * len(requests)
        for index, event in self._run(requests, options, done):
            if isinstance(event, Answer) or (isinstance(event, LatentWireError) and event.code == 3001):
                out[index] = event
            elif isinstance(event, LatentWireError):
                raise event
        return [found for found in out if found is not None]

    def stream(self, requests: Sequence[Request], options: GenerateOptions) -> Iterator[tuple[int, str | Answer]]:
        """``(request, piece of text)`` as soon as the piece is certain, then its ``Answer``. Closed early, it stops.

        Raises:
            LatentError: 3001, of the first request that fails.
        """
        for index, event in self._run(requests, options, lambda count: None):
            if isinstance(event, LatentWireError):
                raise event
            yield index, event

    def check(self, request: Request, options: GenerateOptions, where: str) -> None:
        """Refuse a prompt that leaves no room for its answer. Raises RowError 2006."""
        self._sizes.check(request, options, where)

    def _run(
        self, requests: Sequence[Request], options: GenerateOptions, done: Callable[[int], None]
    ) -> Iterator[tuple[int, Event]]:
        """Events in the order in which they come: longest prompts first, so that little is padded."""
        loop = Loop(self._engine, self._tokenizer, limits_of(self._engine, options), self._rows)
        if self._most:
            loop.scheduler.fewer(2 * self._most)
        events: list[tuple[int, Event]] = []
        for index in sorted(range(len(requests)), key=lambda i: self._order(requests[i])):
            loop.add(requests[index], options, partial(_keep, events, index), index)
        while loop.step():
            self._most = loop.scheduler.fewest
            if ended := sum(not isinstance(event, str) for _, event in events):
                done(ended)
            yield from events
            events.clear()

    def _order(self, request: Request) -> tuple[int, int]:
        return -self._sizes.kind(request), -self._sizes.prompt(request)


def _keep(events: list[tuple[int, Event]], index: int, event: Event) -> None:
    events.append((index, event))
