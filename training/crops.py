"""A passage -> the part that is encoded, and the text that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.prompt import Encode
from .data import Item

ROOM = 72
"""Encoder tokens left behind the encoded part where a continuation is asked for, so that 64 of the LLM's are there;
of short passages half is left."""
SHORTEST = 72
"""Passages with fewer tokens are not continued: too little would be encoded, or asked for."""

LONGEST = 30
"""Characters of a word that is kept whole."""


@dataclass(frozen=True)
class View:
    """What a batch sees of an item: ``item`` with its context cut, and what follows (empty: nothing is asked of it)."""

    item: Item
    rest: str = ""


def view(item: Item, rng: Any, encode: Encode, *, size: int, cropped: bool, continue_share: float) -> View:
    """Cut a passage at white space; items with questions stay whole.

    Args:
        item: a passage without questions.
        rng: numpy generator; three numbers are drawn, whatever comes of them.
        encode: the encoder's tokenizer.
        size: encoder tokens of the part, at most.
        cropped: the part may begin anywhere; else it begins the passage.
        continue_share: share of passages that are continued.
    """
    if item.questions or not (cropped or continue_share):
        return View(item)
    wants, where = rng.random() < continue_share, rng.random()
    text = item.context
    tokens = len(encode(text))
    room = min(ROOM, tokens // 2) if wants and tokens >= SHORTEST else 0
    length = min(size, tokens - room)
    begin = int(where * (tokens - room - length)) if cropped else 0
    # Characters in proportion, then checked: any tokenizer will do, also one that cannot say where its tokens stand.
    start = _after_space(text, begin * len(text) // tokens)
    end = _before_space(text, start + max(1, length * len(text) // tokens))
    while end - start > 1 and len(encode(text[start:end])) > size:
        end = _before_space(text, start + (end - start) * 7 // 8)
    if not text[start:end].strip():
        return View(item)
    return View(Item(text[start:end], ()), text[end:] if room else "")


def _after_space(text: str, at: int) -> int:
    """The first start of a word at ``at`` or after; 0 stays."""
    if at == 0:
        return 0
    while at < len(text) and not text[at - 1].isspace():
        at += 1
    return at if at < len(text) else 0


def _before_space(text: str, at: int) -> int:
    """The last end of a word at ``at`` or before."""
    if at >= len(text):
        return len(text)
    # A longer word, or a script without spaces, is cut where it has to be.
    return next((i for i in range(at, max(0, at - LONGEST), -1) if text[i].isspace()), at)
