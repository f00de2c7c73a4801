"""Strings of a text that must arrive as they are: which they are, and where they stand. Knows nothing of frames.

In: a text. Out: the same text without marks, and protected ranges of it. Two sources, see ``docs/frame.md``:

- marks: whatever stands between ``<keep>`` and ``</keep>``; the marks themselves are not part of the text;
- the rule of ``core/names.py``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from ..core.errors import RowError
from ..core.names import names
from .choices import Protect

OPEN: Final = "<keep>"
CLOSE: Final = "</keep>"
_MARK: Final = re.compile(r"</?keep>")


@dataclass(frozen=True)
class Protected:
    """A text and its protected ranges.

    Attributes:
        text: without marks.
        ranges: ``(start, stop)`` in characters of ``text``, none empty, in order, not overlapping; of equal strings
            only the first.
    """

    text: str
    ranges: tuple[tuple[int, int], ...]


def protect(text: str, how: Protect, where: str = "text") -> Protected:
    """Find what must arrive as it is.

    Args:
        text: as the sender has it.
        how: ``marks``, ``rule`` (marks are then ordinary characters) or ``both``.
        where: for messages.

    Raises:
        RowError: 2013 a mark without its partner, or marks within marks.
    """
    ranges: list[tuple[int, int]] = []
    if how != "rule":
        text, ranges = _marked(text, where)
    if how != "marks":
        ranges = sorted([*ranges, *(r for r in names(text) if not _touches(r, ranges))])
    first: dict[str, tuple[int, int]] = {}
    for start, stop in ranges:
        first.setdefault(text[start:stop], (start, stop))
    return Protected(text, tuple(first.values()))


@dataclass(frozen=True)
class Placed:
    """A protected string and the token of its chunk that holds its beginning."""

    token: int
    text: str

    def slot(self, latents: int, tokens: int) -> int:
        """In which of ``latents`` equal parts of a chunk's ``tokens`` it begins."""
        return self.token * latents // tokens


def place(found: Protected, starts: Sequence[int], chunks: Sequence[int]) -> list[list[Placed]]:
    """Protected strings of each chunk, in order; what begins behind the last chunk is left out.

    Args:
        found: the text.
        starts: character at which each token of the text begins, in order.
        chunks: tokens of each chunk; together they may be fewer than the text has.
    """
    placed: list[list[Placed]] = [[] for _ in chunks]
    edges = [0, *accumulate(chunks)]
    for start, stop in found.ranges:
        token = max(0, bisect_right(starts, start) - 1)
        chunk = bisect_right(edges, token) - 1
        if chunk < len(chunks):
            placed[chunk].append(Placed(token - edges[chunk], found.text[start:stop]))
    return placed


def _marked(text: str, where: str) -> tuple[str, list[tuple[int, int]]]:
    kept: list[str] = []
    ranges: list[tuple[int, int]] = []
    at = length = 0
    opened = -1
    for mark in _MARK.finditer(text):
        if (mark.group() == OPEN) == (opened >= 0):
            what = f"{mark.group()} without its partner"
            fix = f"write {OPEN}...{CLOSE} in pairs, none inside another, or choose --protect rule"
            raise RowError(2013, what, where=f"{where}, character {mark.start()}", fix=fix)
        kept.append(text[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        if opened >= 0 and length > opened:
            ranges.append((opened, length))
        opened = length if opened < 0 else -1
    if opened >= 0:
        fix = f"write {CLOSE} behind it, or choose --protect rule"
        raise RowError(2013, f"{OPEN} without its partner", where=f"{where}, end of the text", fix=fix)
    return "".join([*kept, text[at:]]), ranges


def _touches(one: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(one[0] < stop and start < one[1] for start, stop in others)
