"""Batches that do not fit the machine's memory run in halves.

In: items and what runs a batch of them. Out: its results, in order. What was learnt is kept, so that only the
first batch of a job fails, and it is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..core.console import message
from ..core.errors import EnvironmentFault

T = TypeVar("T")
R = TypeVar("R")


class Room:
    """Most rows of a batch that memory has room for; None until a batch has failed."""

    def __init__(self) -> None:
        self.rows: int | None = None

    def run(self, items: Sequence[T], call: Callable[[Sequence[T]], list[R]]) -> list[R]:
        """``call`` on all items at once, or in as few parts as memory allows.

        Raises:
            EnvironmentFault: 5003 even a single row does not fit.
        """
        out: list[R] = []
        while len(out) < len(items):
            part = items[len(out) : len(out) + (self.rows or len(items))]
            try:
                out += call(part)
            except EnvironmentFault as e:
                if e.code != 5003 or len(part) == 1:
                    raise
                self.rows = len(part) // 2
                message(f"not enough memory for {len(part)} rows at once; going on with {self.rows}")
        return out
