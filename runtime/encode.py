"""Texts to latents: checks, windows, batches.

In: texts. Out: for each the latents f32 [m,d_z] of every chunk, or the error of that text alone.
Knows nothing of codecs and frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Final

import numpy as np

from ..core.errors import LatentError, LatentWireError, RowError
from ..engines.base import F32, Engine
from ..engines.checks import filled
from .choices import TooLong
from .lanes import share_out
from .memory import Room
from .micro_batches import micro_batches
from .options import MAX_TEXT_BYTES

EVEN_BATCHES: Final = 4
"""So many batches are shared out to lanes; fewer run one after the other, each on all processors."""

CHOICES = "pass --on-too-long truncate (keeps the start) or chunk (sends several frames), or shorten the text"


@dataclass(frozen=True)
class Windowed:
    """Token ids of one text, cut to the encoder's window.

    Attributes:
        chunks: one list of ids per frame to be, none longer than the window.
        tokens: tokens of the whole text.
        truncated: the end of the text was left out.
    """

    chunks: tuple[list[int], ...]
    tokens: int
    truncated: bool


def clean(text: str, where: str = "text") -> str:
    """A text that can be sent: no byte order mark at its start, otherwise untouched.

    Raises:
        RowError: 2005 empty or only white space; 2007 over 16 MiB; 2009 a lone surrogate.
    """
    text = text.removeprefix("\ufeff")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as e:
        what = f"text holds a lone surrogate U+{ord(text[e.start]):04X}"
        fix = "write valid Unicode; surrogates come in pairs"
        raise RowError(2009, what, where=f"{where}, character {e.start}", fix=fix) from e
    if size > MAX_TEXT_BYTES:
        expected = f"expected at most {MAX_TEXT_BYTES} bytes, got {size}"
        raise RowError(2007, "text too large", where=where, expected=expected, fix="split it")
    if not text or text.isspace():
        what = "text is only white space" if text else "text is empty"
        raise RowError(2005, what, where=where, expected="expected at least one visible character", fix="drop the row")
    return text


def window(ids: list[int], limit: int, on_too_long: TooLong, where: str = "text") -> Windowed:
    """Cut ids to the encoder's window of ``limit`` tokens.

    Chunks are of nearly equal length, so that none is a stump.

    Raises:
        RowError: 2006 too long and ``on_too_long`` is ``error``.
    """
    if len(ids) <= limit:
        return Windowed((ids,), len(ids), False)
    if on_too_long == "error":
        expected = f"expected at most {limit} tokens, got {len(ids)}"
        raise RowError(2006, "text longer than the encoder's window", where=where, expected=expected, fix=CHOICES)
    if on_too_long == "truncate":
        return Windowed((ids[:limit],), len(ids), True)
    count = -(-len(ids) // limit)
    edges = [len(ids) * i // count for i in range(count + 1)]
    return Windowed(tuple(ids[a:b] for a, b in pairwise(edges)), len(ids), False)


def encode(
    engine: Engine, chunks: Sequence[list[int]], latents: int, batch_size: int, room: Room | None = None
) -> list[F32 | LatentWireError]:
    """Latents of many chunks, in the order given.

    Args:
        engine: with its encoder.
        chunks: token ids, each within the window.
        latents: M; a chunk with fewer tokens gets as many latents as tokens (of bytes: as groups of four).
        batch_size: most chunks that run together.
        room: what is known about memory; None: nothing yet.

    Returns:
        For each chunk f32 [m, d_z], m at most M and at most its tokens; or LatentError 3001 where only that one failed.
    """
    out: list[F32 | LatentWireError] = [np.empty(0, np.float32)] * len(chunks)
    room = room or Room()
    most = min(batch_size, engine.max_batch or batch_size)
    batches = micro_batches([len(c) for c in chunks], most, engine.fill)
    # With few batches the last one would keep a single lane busy.
    lanes = [lane for lane in engine.lanes() if len(batches) >= EVEN_BATCHES] or [engine]

    def run(lane: Engine, batch: list[int], stop: Event) -> list[F32 | LatentWireError]:
        return room.run([chunks[i] for i in batch], lambda part: _batch(lane, part, latents))

    for batch, made in zip(batches, share_out(lanes, batches, run), strict=True):
        for index, found in zip(batch, made, strict=True):
            out[index] = found
    return out


def _batch(engine: Engine, chunks: Sequence[list[int]], latents: int) -> list[F32 | LatentWireError]:
    lengths = np.array([len(c) for c in chunks], np.int64)
    ids = np.zeros((len(chunks), int(lengths.max())), np.int64)
    for b, chunk in enumerate(chunks):
        ids[b, : len(chunk)] = chunk
    try:
        z = engine.encode(ids, lengths, latents)
    except LatentError as e:
        if e.code != 3001:
            raise
        return [e] if len(chunks) == 1 else [_batch(engine, [c], latents)[0] for c in chunks]
    return [z[b, :count] for b, count in enumerate(filled(z))]
