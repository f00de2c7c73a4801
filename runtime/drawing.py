"""``latentwire inspect PATH --draw FILE``: what a frame keeps, as a page, a picture or JSON.

In: a frame or a text, and a bundle that reads it. Out: a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..core.console import message as say
from ..core.console import print_json
from ..core.errors import InputError, LatentWireError
from ..core.files import atomic_write_bytes
from . import message, wire
from .kept import Kept, kept
from .kept_html import page, summary
from .kept_png import png
from .message import Message
from .options import MAX_TEXT_BYTES, CompressOptions
from .pipeline import Pipeline

SUFFIXES: Final = (".html", ".png")
LONGEST: Final = 1 << 20
"""Bytes of a file of frames that are drawn: one text."""


def draw(
    path: Path, bundle: Path, out: Path, text: Path | None = None, question: str = "", as_json: bool = False
) -> None:
    """Draw the frame of one text, or a text as its frame would keep it.

    Args:
        path: file of the frames of one text, or of a text in UTF-8, which is compressed here.
        bundle: reads it; its encoder must be the frames'.
        out: ends in .html or .png.
        text: the original of a frame.
        question: also find out which latents its answer hangs on.
        as_json: print all figures too.

    Raises:
        InputError: 2106 a file that cannot be read; 2110 neither frames nor a text; 2111 another ending of ``out``,
            frames without latents. FrameError: 1101-1109. ModelError: 3101. BundleError: 4001-4009.
    """
    if out.suffix.lower() not in SUFFIXES:
        expected = f"expected a file that ends in {' or '.join(SUFFIXES)}, got {out.name!r}"
        raise InputError(2111, "what shall be drawn", where="option draw", expected=expected)
    data = _read(path, max(LONGEST, MAX_TEXT_BYTES))
    original = None if text is None else _text(text, _read(text, MAX_TEXT_BYTES))
    with Pipeline.open(bundle) as pipe:
        if data[:3] == wire.MAGIC:
            frames = message.unpack(data)
        else:
            original = _text(path, data)
            frames = _compressed(pipe, original, path)
        found = kept(pipe, frames, original, question)
    atomic_write_bytes(out, png(found) if out.suffix.lower() == ".png" else page(found).encode())
    _tell(found, out, as_json)


def _compressed(pipe: Pipeline, text: str, path: Path) -> Message:
    (made,) = pipe.compress_rows([text], CompressOptions(), [str(path)])
    if isinstance(made, LatentWireError):
        raise made
    return made.message


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise InputError(2106, "cannot read", where=str(path), expected=str(e.strerror)) from e
    if len(data) > limit:
        raise InputError(2110, "too large to be drawn", where=str(path), expected=f"expected at most {limit} bytes")
    return data


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        expected = "expected frames of one text, or a text in UTF-8"
        raise InputError(2110, "not a file that can be drawn", where=str(path), expected=expected) from e


def _tell(found: Kept, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    say(f"{summary(found)} {out}")
