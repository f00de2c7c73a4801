"""What a frame keeps, as a picture: the text with its words coloured, and the tokens nearest to each latent.

In: ``Kept``. Out: PNG bytes. Needs matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final

from ..core.extras import needs
from .kept import Kept, Word
from .kept_colours import LEGEND, VERBATIM, colour
from .kept_html import span, summary

COLUMNS: Final = 96
"""Characters of a line."""
LINE: Final = 0.27
"""Inches."""
WIDTH: Final = 11.0
SIZE: Final = 11
"""Points of the letters; monospaced, so that a character is 0.602 of that wide."""
LEFT: Final = 0.4
WIDEST: Final = 112
"""Characters that fit beside the margin; only the list of latents goes beyond ``COLUMNS``."""
SHOWN: Final = 64
"""Latents that are listed."""

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f]")

Line = list[tuple[str, Word | None]]


def png(found: Kept) -> bytes:
    """The picture.

    Raises:
        EnvironmentFault: 5011 matplotlib is not installed.
    """
    with needs("bench"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    lines = list(wrapped(found.text, found.words)) if found.text is not None else []
    listed = [_latent(found, k) for k in range(min(len(found.latents), SHOWN))]
    head = ["What the frame keeps", *_folded(summary(found))]
    tail = [*([f"{found.question}  {found.answer}"[:COLUMNS], ""] if found.question else []), _columns(found), *listed]
    rows = len(head) + len(lines) + len(tail) + (5 if lines else 3)
    figure = Figure(figsize=(WIDTH, LINE * rows), facecolor="white")
    FigureCanvasAgg(figure)
    draw = _Pen(figure, LINE * rows)
    for number, text in enumerate(head):
        draw.line([(text, None)], bold=number == 0)
    draw.skip()
    if lines:
        for line in lines:
            draw.line(line)
        draw.skip()
        legend: Line = [piece for label, share in LEGEND for piece in ((label, _sample(share)), ("  ", None))]
        draw.line([*legend, ("travels as it is", _sample(0.0, verbatim=True))])
        draw.skip()
    for text in tail:
        draw.line([(text, None)])
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font has not every script; what it lacks becomes a box. A page has the reader's own fonts.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def wrapped(text: str, words: tuple[Word, ...]) -> Iterator[Line]:
    """The text in lines of at most ``COLUMNS`` characters, each a list of pieces with the word they belong to."""
    at = 0
    pieces: Line = []
    for word in words:
        pieces += [(text[at : word.start], None), (text[word.start : word.stop], word)]
        at = word.stop
    pieces.append((text[at:], None))
    line: Line = []
    used = 0
    for piece, owner in pieces:
        for part in _parts(piece, owner is not None):
            if part == "\n" or (used + len(part) > COLUMNS and line):
                yield line
                line, used = [], 0
            if part.strip() or (line and part != "\n"):
                line.append((part, owner))
                used += len(part)
    if line:
        yield line


class _Pen:
    """Writes line by line from the top."""

    def __init__(self, figure: Any, height: float) -> None:
        self._figure, self._height, self._at = figure, height, LINE * 0.9
        self._wide = 0.602 * SIZE / 72

    def skip(self) -> None:
        """Half a line of nothing."""
        self._at += LINE / 2

    def line(self, pieces: Line, bold: bool = False) -> None:
        """One line; a piece with a word gets that word's colour behind it."""
        from matplotlib.patches import Rectangle

        x = LEFT
        for text, word in pieces:
            wide = self._wide * len(text)
            if word is not None:
                box = (x / WIDTH, 1 - (self._at + 0.06) / self._height)
                size = (wide / WIDTH, 0.22 / self._height)
                self._figure.add_artist(Rectangle(box, *size, facecolor=colour(word.kept), edgecolor="#cccccc", lw=0.5))
                if word.verbatim:
                    under = (box[0], box[1] - 0.03 / self._height)
                    thin = (size[0], 0.03 / self._height)
                    self._figure.add_artist(Rectangle(under, *thin, facecolor=VERBATIM))
            self._figure.text(
                x / WIDTH,
                1 - self._at / self._height,
                _CONTROLS.sub("\ufffd", text),
                family="monospace",
                size=SIZE,
                weight="bold" if bold else "normal",
                parse_math=False,
            )
            x += wide
        self._at += LINE


def _latent(found: Kept, number: int) -> str:
    one = found.latents[number]
    near = "  ".join(f"{n.token.strip() or repr(n.token)} {n.cosine:.2f}" for n in one.near)
    said = " ".join(span(found, one).split())
    weight = "" if one.influence is None else f"{one.influence:+.2f}  "
    return f"{one.index:3d}  {weight}{said[:38]:38s}  {near}"[:WIDEST]


def _columns(found: Kept) -> str:
    before, behind = ("lost   ", "; lost: nats a token of the answer") if found.question else ("", "")
    return f"     {before}{'stands for':38s}  nearest tokens, cosine{behind}"


def _sample(share: float, verbatim: bool = False) -> Word:
    return Word(0, 0, 1.0 - share, 1.0, verbatim)


def _parts(piece: str, whole: bool) -> Iterator[str]:
    """Lines end at newlines; a coloured piece stays together, others break behind spaces."""
    for number, line in enumerate(piece.split("\n")):
        if number:
            yield "\n"
        if whole:
            yield from _cut(line)
            continue
        at = 0
        for i, character in enumerate(line):
            if character == " ":
                yield from _cut(line[at : i + 1])
                at = i + 1
        yield from _cut(line[at:])


def _cut(word: str) -> Iterator[str]:
    """What is longer than a line, in pieces."""
    for at in range(0, len(word), COLUMNS):
        yield word[at : at + COLUMNS]


def _folded(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, COLUMNS)
