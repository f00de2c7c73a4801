"""Prompts to answers, a list at a time.

In: requests (a context as latents or tokens, and question tokens). Out: answers, or pieces of them as they come.
Results do not depend on the requests that run beside them. Knows nothing of frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Final

from ..core.errors import LatentWireError
from ..engines.base import Engine
from .answer import Answer
from .lanes import share_out
from .options import GenerateOptions
from .request import Request, Sizes
from .scheduler.loop import Event, Loop, limits_of
from .scheduler.rows import Rows
from .tokenizer import TextTokenizer

LANE_ROWS: Final = 4
"""Rows that a lane must have: with so many, two lanes were 1.25 times as fast as one batch on both cores."""

_Numbered = tuple[int, Request]


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
        numbered, lanes = list(enumerate(requests)), self._lanes
        if lanes and min(len(requests), options.batch_size) >= LANE_ROWS * len(lanes):
            found = self._shared(lanes, numbered, options, done)
        else:
            found = self._ended(numbered, options, done)
        return [found[number] for number, _ in numbered if number in found]

    def stream(self, requests: Sequence[Request], options: GenerateOptions) -> Iterator[tuple[int, str | Answer]]:
        """``(request, piece of text)`` as soon as the piece is certain, then its ``Answer``. Closed early, it stops.

        Raises:
            LatentError: 3001, of the first request that fails.
        """
        for index, event in self._run(list(enumerate(requests)), options, lambda count: None):
            if isinstance(event, LatentWireError):
                raise event
            yield index, event

    def check(self, request: Request, options: GenerateOptions, where: str) -> None:
        """Refuse a prompt that leaves no room for its answer. Raises RowError 2006."""
        self._sizes.check(request, options, where)

    @cached_property
    def _lanes(self) -> list[Generator]:
        return [Generator(lane, self._tokenizer) for lane in self._engine.lanes()]

    def _shared(
        self,
        lanes: Sequence[Generator],
        numbered: Sequence[_Numbered],
        options: GenerateOptions,
        done: Callable[[int], None],
    ) -> dict[int, Answer | LatentWireError]:
        """As ``_ended``, on all lanes: each has its share of the requests, long and short, of the rows and of the
        memory for them."""
        self._rows.drop()
        count, one_at_a_time = len(lanes), threading.Lock()
        order = sorted(numbered, key=self._order)
        less = replace(options, batch_size=options.batch_size // count, kv_bytes=max(1, options.kv_bytes // count))

        def told(ended: int) -> None:
            with one_at_a_time:
                done(ended)

        parts = [order[i::count] for i in range(count)]
        found = share_out(lanes, parts, lambda lane, part, stop: lane._ended(part, less, told, stop))
        return {number: event for part in found for number, event in part.items()}

    def _ended(
        self,
        numbered: Sequence[_Numbered],
        options: GenerateOptions,
        done: Callable[[int], None],
        stop: threading.Event | None = None,
    ) -> dict[int, Answer | LatentWireError]:
        """Requests by number, with their answers or the errors that are theirs alone; ``stop`` ends it early."""
        out: dict[int, Answer | LatentWireError] = {}
        for number, event in self._run(numbered, options, done):
            if isinstance(event, Answer) or (isinstance(event, LatentWireError) and event.code == 3001):
                out[number] = event
            elif isinstance(event, LatentWireError):
                raise event
            if stop and stop.is_set():
                break
        return out

    def _run(
        self, numbered: Sequence[_Numbered], options: GenerateOptions, done: Callable[[int], None]
    ) -> Iterator[tuple[int, Event]]:
        """Events in the order in which they come: longest prompts first, so that little is padded."""
        loop = Loop(self._engine, self._tokenizer, limits_of(self._engine, options), self._rows)
        if self._most:
            loop.scheduler.fewer(2 * self._most)
        events: list[tuple[int, Event]] = []
        for number, request in sorted(numbered, key=self._order):
            loop.add(request, options, partial(_keep, events, number), number)
        while loop.step():
            self._most = loop.scheduler.fewest
            if ended := sum(not isinstance(event, str) for _, event in events):
                done(ended)
            yield from events
            events.clear()

    def _order(self, numbered: _Numbered) -> tuple[int, int]:
        _, request = numbered
        return -self._sizes.kind(request), -self._sizes.prompt(request)


def _keep(events: list[tuple[int, Event]], number: int, event: Event) -> None:
    events.append((number, event))
