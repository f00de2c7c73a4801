"""How fast answers end, and so when there will be room again: what ``Retry-After`` tells a refused client.

A constant second would bring all refused clients back at once, again and again, and answering them costs time that
the answers under way need.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

LONGEST_S: Final = 30
"""More is never asked of a client: the guess may be wrong, and others may leave."""


class Pace:
    """Moments at which the last answers ended.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=64)

    def ended(self) -> None:
        """One more answer is over."""
        self._ends.append(self._clock())

    def seconds(self, answers: int) -> int:
        """Whole seconds, 1 to ``LONGEST_S``, until so many answers should have ended; 1 while nothing is known."""
        if len(self._ends) < 2:
            return 1
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return round(min(LONGEST_S, max(1.0, each * answers)))
