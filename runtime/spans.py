"""Strings of a text that must arrive as they are: which they are, and where they stand. Knows nothing of frames.

In: a text. Out: the same text without marks, and protected ranges of it. Two sources, see ``docs/frame.md``:

- marks: whatever stands between ``<keep>`` and ``</keep>``; the marks themselves are not part of the text;
- the rule: words with a digit, addresses and links, words in capitals, and names. A name is a run of words with a
  capital first letter; a single one at the beginning of a sentence counts only if it stands elsewhere in the text too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from ..core.errors import RowError
from .choices import Protect

OPEN: Final = "<keep>"
CLOSE: Final = "</keep>"
_MARK: Final = re.compile(r"</?keep>")
_WORD: Final = re.compile(r"\S+")
_OUTER: Final = "\"'“”‘’«»„()[]{}<>,;:!?.…*_–—|"
"""Stripped from both ends of a word. Signs of money, per cent, degree, plus and minus stay."""
_ENDS: Final = ".!?…:"
"""A word that follows one of these begins a sentence."""
_JOINTS: Final = frozenset({"of", "de", "la", "le", "du", "von", "van", "der", "den", "bin", "al", "&"})
"""Words inside a name that have no capital letter."""


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


@dataclass(frozen=True)
class _Word:
    start: int
    stop: int
    text: str
    opens: bool
    breaks: bool

    @property
    def capital(self) -> bool:
        return self.text[:1].isupper() and len(self.text) > 1

    @property
    def certain(self) -> bool:
        """Protected wherever it stands."""
        letters = [c for c in self.text if c.isalpha()]
        shouted = len(letters) > 1 and all(c.isupper() for c in letters)
        return shouted or any(c.isdigit() for c in self.text) or "@" in self.text[1:] or "://" in self.text


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
        ranges = sorted([*ranges, *(r for r in _ruled(text) if not _touches(r, ranges))])
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
        """The latent, of ``latents`` that share a chunk's ``tokens`` evenly."""
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


def _ruled(text: str) -> Iterator[tuple[int, int]]:
    words = list(_words(text))
    inner = {w.text for w in words if w.capital and not w.opens}
    at = 0
    while at < len(words):
        end = _name_end(words, at)
        run = words[at:end]
        if run and not (len(run) == 1 and run[0].opens and run[0].text not in inner and not run[0].certain):
            yield run[0].start, run[-1].stop
        elif not run and words[at].certain:
            yield words[at].start, words[at].stop
        at = max(end, at + 1)


def _name_end(words: list[_Word], at: int) -> int:
    """Behind the last word of the name that begins at ``at``; ``at`` where none does."""
    end = at
    while end < len(words):
        word = words[end]
        if word.capital:
            end += 1
            if word.breaks:
                return end
        elif end > at and word.text in _JOINTS and not word.breaks and end + 1 < len(words) and words[end + 1].capital:
            end += 1
        else:
            return end
    return end


def _words(text: str) -> Iterator[_Word]:
    opens = True
    for found in _WORD.finditer(text):
        raw = found.group()
        bare = raw.lstrip(_OUTER)
        start = found.start() + len(raw) - len(bare)
        bare = bare.rstrip(_OUTER)
        if not bare:
            opens = opens or raw[-1] in _ENDS
            continue
        tail = text[start + len(bare) : found.end()]
        yield _Word(start, start + len(bare), bare, opens or start > found.start(), bool(tail))
        opens = any(c in _ENDS for c in tail)


def _touches(one: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(one[0] < stop and start < one[1] for start, stop in others)
