"""How a count is spread over rows: exact smallest and largest, a histogram of bounded size between them.

Whole numbers only, so that sums over shards do not depend on the order they come in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

BITS: Final = 7
"""Leading bits that a bin keeps: below 128 a bin is one number, above it is at most 1/64 of its numbers wide."""
PERCENTILES: Final = (5, 50, 95)


def bin_of(value: int, bits: int = BITS) -> int:
    """The smallest number of the bin that ``value`` (from 0) falls into."""
    shift = max(value.bit_length() - bits, 0)
    return value >> shift << shift


def bin_width(value: int, bits: int = BITS) -> int:
    """How many numbers are in the bin of ``value``."""
    return 1 << max(value.bit_length() - bits, 0)


class Spread:
    """Start at nothing; ``add`` numbers, or all of another one."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.low: int | None = None
        self.high: int | None = None

    @classmethod
    def of(cls, values: Iterable[int]) -> Spread:
        """Of numbers from 0."""
        found = cls()
        for value in values:
            found._reach(value, value)
            found.counts[bin_of(value)] += 1
        return found

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Spread:
        """What ``to_json`` wrote. Raises KeyError."""
        found = cls()
        found.low, found.high = facts["min"], facts["max"]
        found.counts.update({int(low): count for low, count in facts["counts"].items()})
        return found

    def add(self, other: Spread) -> None:
        """Both together."""
        if other.low is not None and other.high is not None:
            self._reach(other.low, other.high)
        self.counts.update(other.counts)

    def to_json(self) -> dict[str, Any]:
        """``min``, ``max`` and ``counts``: first number of a bin to how many fell into it."""
        counts = {str(low): self.counts[low] for low in sorted(self.counts)}
        return {"min": self.low, "max": self.high, "counts": counts}

    def percentile(self, percent: int) -> int:
        """The smallest number that ``percent`` of all do not exceed; above 127 the middle of its bin.

        Raises:
            ValueError: there are no numbers.
        """
        if self.low is None or self.high is None:
            raise ValueError("no percentile of nothing")
        rank = max(-(-self.counts.total() * percent // 100), 1)
        seen, found = 0, self.high
        for low in sorted(self.counts):
            seen += self.counts[low]
            if seen >= rank:
                found = low + bin_width(low) // 2
                break
        return min(max(found, self.low), self.high)

    def summary(self) -> dict[str, int]:
        """``min``, ``p5``, ``p50``, ``p95``, ``max``; empty where there are no numbers."""
        if self.low is None or self.high is None:
            return {}
        return {"min": self.low} | {f"p{p}": self.percentile(p) for p in PERCENTILES} | {"max": self.high}

    def _reach(self, low: int, high: int) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
