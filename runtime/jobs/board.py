"""Which piece of work comes next, and what becomes of a shard whose worker died. Pure state, for every backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..choices import OnPoison
from .poison import Suspect, Work
from .task import GROUP, Done, Failed


class Board:
    """Hands out work and takes back what came of it.

    Reads ``shards`` only as far as work is asked for; holds nothing of a shard that is done.

    Args:
        shards: numbers, in the order in which they are begun.
        rows_of: how many rows a shard has; asked only for shards that died.
        on_poison: what to do about a shard that dies again and again.
    """

    def __init__(self, shards: Iterable[int], rows_of: Callable[[int], int], on_poison: OnPoison = "bisect") -> None:
        self._shards = iter(shards)
        self._rows_of, self._on_poison = rows_of, on_poison
        self._suspects: dict[int, Suspect] = {}
        self._again: deque[Work] = deque()
        self._running = 0

    def take(self) -> Work | None:
        """The next piece; None: there is none now."""
        if self._again:
            work = self._again.popleft()
        elif (number := next(self._shards, None)) is not None:
            work = Work(number)
        else:
            return None
        self._running += 1
        return work

    @property
    def idle(self) -> bool:
        """Nothing runs. If ``take`` has nothing either, all is done."""
        return not self._running

    def give_back(self, work: Work) -> None:
        """It was never begun."""
        self._running -= 1
        self._again.append(work)

    def finished(self, work: Work, facts: dict[str, Any]) -> Done | Failed | None:
        """It ended well. Returns the event, unless it was only a part of a shard."""
        self._running -= 1
        if work.rows is None:
            self._suspects.pop(work.shard, None)
            return Done(work.shard, facts)
        suspect = self._suspects[work.shard]
        suspect.survived(work)
        return self._on(suspect)

    def died(self, work: Work, done: int, how: str) -> Failed | None:
        """Its worker died after ``done`` finished rows. Returns the event where there is no more to try."""
        self._running -= 1
        suspect = self._suspects.get(work.shard)
        if suspect is None:
            suspect = self._suspects[work.shard] = Suspect(
                work.shard, self._rows_of(work.shard), GROUP, self._on_poison
            )
        suspect.died(work, done, how)
        return self._on(suspect)

    def _on(self, suspect: Suspect) -> Failed | None:
        if suspect.given_up:
            return Failed(suspect.shard, suspect.error())
        self._again.append(suspect.next())
        return None
