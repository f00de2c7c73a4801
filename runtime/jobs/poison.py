"""One shard whose workers die: try again, then find the row that kills them. Pure state; starts nothing.

A shard that died ``TRIES`` times is looked at in parts: a part that lives is cleared, a part that dies is halved,
and a single row that dies ``TRIES`` times is poison. Then the shard runs again without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from ...core.errors import EnvironmentFault
from ..choices import OnPoison

TRIES: Final = 3
"""Deaths that are put down to bad luck; also of a single row, so that one stray kill blames nobody."""
MOST_POISON: Final = 16
"""Rows of one shard that may be poison; with more it is not the rows."""


@dataclass(frozen=True)
class Work:
    """What one worker does at a time: a whole shard, or (``rows``) a part of it that is not written."""

    shard: int
    rows: range | None = None
    poison: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a pipe; ``from_json`` reads it."""
        part = None if self.rows is None else [self.rows.start, self.rows.stop]
        return {"shard": self.shard, "rows": part, "poison": list(self.poison)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Work:
        """The work that ``to_json`` described."""
        part = found["rows"]
        return cls(found["shard"], None if part is None else range(*part), tuple(found["poison"]))


class Suspect:
    """A shard that died at least once.

    Args:
        shard: its number.
        rows: how many it has.
        group: rows that are compressed together; a death happens within one such group.
        on_poison: ``fail`` gives up where ``bisect`` would look for the row.
    """

    def __init__(self, shard: int, rows: int, group: int, on_poison: OnPoison = "bisect") -> None:
        self.shard, self._rows, self._group, self._on_poison = shard, rows, group, on_poison
        self.poison: set[int] = set()
        self.given_up = ""
        """Why this shard cannot be done; empty while it may still be."""
        self._deaths: list[int] = []
        self._parts: list[range] = []
        self._single = 0
        self._found = self._searched_all = False
        self._last = ""

    def next(self) -> Work:
        """What to run now."""
        if self._parts:
            return Work(self.shard, self._parts[-1])
        return Work(self.shard, None, tuple(sorted(self.poison)))

    def died(self, work: Work, done: int, how: str) -> None:
        """The worker died at ``work`` after ``done`` finished rows."""
        self._last = how
        if work.rows is None:
            self._deaths.append(done)
            if len(self._deaths) >= TRIES:
                self._look_closer()
        elif len(work.rows) > 1:
            self._parts.pop()
            middle = work.rows.start + len(work.rows) // 2
            self._parts += [range(middle, work.rows.stop), range(work.rows.start, middle)]
        else:
            self._single += 1
            if self._single >= TRIES:
                self.poison.add(work.rows.start)
                self._found = True
                self._cleared()

    def survived(self, work: Work) -> None:
        """A part lived."""
        if work.rows is not None:
            self._cleared()

    def error(self) -> EnvironmentFault:
        """5003, for a shard that was given up."""
        where = f"shard {self.shard}"
        fix = "use fewer workers or a smaller --batch-size if memory is short; the same command goes on from here"
        expected = f"{self.given_up}; the last time: {self._last}"
        return EnvironmentFault(5003, "workers die at this shard", where=where, expected=expected, fix=fix)

    def _cleared(self) -> None:
        self._parts.pop()
        self._single = 0
        if len(self.poison) > MOST_POISON:
            self.given_up = f"more than {MOST_POISON} of its rows kill the process"
        elif not self._parts:
            self._end_search()

    def _look_closer(self) -> None:
        if self._on_poison == "fail":
            self.given_up = f"tried {TRIES} times, and --on-poison is fail"
        elif self._searched_all:
            self.given_up = "it dies as a whole, but none of its rows does alone"
        else:
            first, same = self._deaths[0], len(set(self._deaths)) == 1
            self._search(range(first, min(first + self._group, self._rows)) if same else range(self._rows))

    def _search(self, rows: range) -> None:
        """Look at ``rows`` without those that are known; where none is left, at nothing."""
        self._whole = len(rows) == self._rows
        edges = [rows.start - 1, *sorted(r for r in self.poison if r in rows), rows.stop]
        parts = [range(a + 1, b) for a, b in pairwise(edges) if b > a + 1]
        self._parts = parts[::-1]
        if not parts:
            self._end_search()

    def _end_search(self) -> None:
        self._deaths.clear()
        if self._found:
            self._found = False
        elif self._whole:
            self._searched_all = True
        else:
            self._search(range(self._rows))
