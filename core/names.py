"""Names and numbers of a text: what latents lose first, and what travels beside them as it is. Pure text.

The rule (``docs/frame.md``): words with a digit, addresses and links, words in capitals, and names. A name is a run of
words with a capital first letter; a single one at the beginning of a sentence counts only if it stands elsewhere in the
text too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"\S+")
_OUTER: Final = "\"'“”‘’«»„()[]{}<>,;:!?.…*_–—|"
"""Stripped from both ends of a word. Signs of money, per cent, degree, plus and minus stay."""
_ENDS: Final = ".!?…:"
"""A word that follows one of these begins a sentence."""
_JOINTS: Final = frozenset({"of", "de", "la", "le", "du", "von", "van", "der", "den", "bin", "al", "&"})
"""Words inside a name that have no capital letter."""


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


def names(text: str) -> Iterator[tuple[int, int]]:
    """Ranges ``(start, stop)`` in characters of ``text``: in order, none empty, none overlapping; equal strings again
    and again."""
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


def strings(text: str) -> tuple[str, ...]:
    """The same as strings, each once, in the order of the text."""
    return tuple(dict.fromkeys(text[start:stop] for start, stop in names(text)))


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
