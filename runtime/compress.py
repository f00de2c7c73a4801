"""Texts to messages: the sending half of the pipeline.

In: texts. Out: for each its frames and counts, or the error of that text alone. Files and rows of files are
not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..core.errors import InputError, LatentWireError, RowError
from ..engines.base import F32, Engine
from ..engines.bundle import EncoderInfo
from . import fsq, hybrid, message
from .codec import BY_NAME, Codec
from .encode import Windowed, clean, encode, window
from .fallback import choose, fidelity
from .fit import byte_limit, frames_size, most_latents, too_big
from .hybrid import Span
from .memory import Room
from .message import Message
from .options import CompressOptions
from .quantise import U8, require_quantiser, to_codes
from .spans import Placed, Protected, place, protect
from .tokenizer import TextTokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Compressed:
    """One text, compressed.

    Attributes:
        message: its frames.
        tokens: encoder tokens of the whole text.
        text_bytes: UTF-8 bytes of the whole text.
        truncated: the end was left out.
    """

    message: Message
    tokens: int
    text_bytes: int
    truncated: bool


@dataclass(frozen=True)
class _Row:
    """A text that can be sent.

    Attributes:
        name: what messages call it.
        text: without byte order mark and without marks of protection.
        found: its windows.
        spans: for each window what travels verbatim; None but for codec hybrid.
        limit: most bytes of its frames.
        latents: M of each window; 0 where not even one fits the limit.
        least: bytes of its frames with one latent each.
    """

    name: str
    text: str
    found: Windowed
    spans: list[list[Placed]] | None
    limit: int | None
    latents: int
    least: int

    @property
    def sent(self) -> tuple[list[int], ...]:
        """Windows that are encoded."""
        return self.found.chunks if self.latents else ()


@dataclass(frozen=True)
class _Coding:
    """How latents become bytes: ``codec`` is that of the latents, also inside hybrid."""

    codec: Codec
    profile: int
    d_z: int


def compress(
    engine: Engine,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    options: CompressOptions,
    names: Sequence[str] | None = None,
    room: Room | None = None,
) -> list[Compressed | LatentWireError]:
    """One result or one error per text, in the order given.

    Args:
        engine: with its encoder; with ``dequantise`` for codes that are checked before they leave.
        tokenizer: the encoder's.
        texts: at most a few thousand at a time; all their latents are held at once.
        options: codec, M, the rate, and what to do with long texts.
        names: what error messages call each text; default ``text 0`` and so on.
        room: what is known about memory; None: nothing yet.

    Raises:
        InputError: 2111 more latents asked for than the encoder's window has tokens, codes of a bundle without
            a quantiser, or fewer bytes than one latent takes.
        LatentError: 3002 the engine and the bundle disagree about shapes.
    """
    info = engine.bundle.manifest.encoder
    latents = latent_count(info, options)
    coding = None if options.codec == "text" else _coding(engine, options)
    names = [f"text {i}" for i in range(len(texts))] if names is None else names
    rows = [
        row if isinstance(row, LatentWireError) else _fitted(row, latents, coding, options)
        for row in _rows(tokenizer, texts, names, info.max_tokens, options)
    ]
    if coding is None:
        return [r if isinstance(r, LatentWireError) else _as_text(r, options) for r in rows]
    found = _encoded(engine, [r for r in rows if isinstance(r, _Row)], options, room)
    codes: Iterator[U8 | LatentWireError] | None = None
    if coding.codec == Codec.FSQ:
        codes = iter(to_codes(engine, found))
    made = iter(found)
    out: list[Compressed | LatentWireError] = []
    for row in rows:
        if isinstance(row, LatentWireError):
            out.append(row)
            continue
        z = [next(made) for _ in row.sent]
        quantised = [next(codes) for _ in row.sent] if codes else None
        out.append(_sent(engine, row, z, quantised, coding, options))
    return out


def latent_count(info: EncoderInfo, options: CompressOptions) -> int:
    """M of this encoder and these options.

    Raises:
        InputError: 2111.
    """
    latents = info.latents if options.latents is None else options.latents
    if latents > info.max_tokens:
        expected = f"expected at most the encoder's window of {info.max_tokens} tokens, got {latents}"
        raise InputError(2111, "more latents than the encoder can make", where="option latents", expected=expected)
    exact = {"f16": Codec.F16, "i8": Codec.I8}.get(options.codec)
    least = 0 if exact is None else frames_size(exact, 0, info.d_z, [1])
    if options.max_bytes is not None and options.max_bytes < least and options.fallback == "off":
        expected = f"expected at least {least} for one latent of codec {options.codec}, got {options.max_bytes}"
        fix = "ask for more bytes, or choose codec fsq"
        raise InputError(2111, "no frame is that small", where="option max_bytes", expected=expected, fix=fix)
    return latents


def _coding(engine: Engine, options: CompressOptions) -> _Coding:
    manifest = engine.bundle.manifest
    codec = BY_NAME[options.codec]
    if codec == Codec.HYBRID:
        codec = Codec.FSQ if "quantise" in manifest.graphs else Codec.I8
    if codec != Codec.FSQ:
        return _Coding(codec, 0, manifest.encoder.d_z)
    require_quantiser(engine)
    dims = manifest.graphs["quantise"].outputs[0].dims[-1]
    return _Coding(codec, fsq.profile_of(int(dims)), manifest.encoder.d_z)


def _rows(
    tokenizer: TextTokenizer, texts: Sequence[str], names: Sequence[str], limit: int, options: CompressOptions
) -> list[_Row | LatentWireError]:
    """Texts cut to windows; neither spans nor latents are counted yet."""
    cleaned: list[Protected | LatentWireError] = []
    for text, name in zip(texts, names, strict=True):
        try:
            cleaned.append(_cleaned(text, name, options))
        except LatentWireError as e:
            cleaned.append(e)
    on_too_long = "chunk" if options.codec == "text" else options.on_too_long  # a text frame has no window
    ids = iter(tokenizer.encode_all([c.text for c in cleaned if isinstance(c, Protected)]))
    out: list[_Row | LatentWireError] = []
    for item, name in zip(cleaned, names, strict=True):
        if isinstance(item, LatentWireError):
            out.append(item)
            continue
        try:
            found = window(next(ids), limit, on_too_long, name)
        except LatentWireError as e:
            out.append(e)
            continue
        spans = None
        if options.codec == "hybrid":
            spans = place(item, tokenizer.starts(item.text), [len(c) for c in found.chunks])
        out.append(_Row(name, item.text, found, spans, byte_limit(options, len(item.text.encode())), 0, 0))
    return out


def _cleaned(text: str, name: str, options: CompressOptions) -> Protected:
    text = clean(text, name)
    if options.codec != "hybrid":
        return Protected(text, ())
    found = protect(text, options.protect, name)
    clean(found.text, name)  # marks may have been all there was
    return found


def _fitted(row: _Row, latents: int, coding: _Coding | None, options: CompressOptions) -> _Row:
    """The row with its M."""
    if coding is None:
        return row
    chunks = [len(c) for c in row.found.chunks]
    extra = sum(hybrid.overhead(part) for part in _spans(row, [latents] * len(chunks)) or ())
    m = most_latents(row.limit, latents, coding.codec, coding.profile, coding.d_z, chunks, extra)
    least = frames_size(coding.codec, coding.profile, coding.d_z, [1] * len(chunks), extra)
    return _Row(row.name, row.text, row.found, row.spans, row.limit, m, least)


def _spans(row: _Row, latents: Sequence[int]) -> list[list[Span]] | None:
    """What travels verbatim beside each chunk's ``latents``."""
    if row.spans is None:
        return None
    return [
        [Span(p.slot(min(m, len(ids)), len(ids)), p.text) for p in placed]
        for placed, ids, m in zip(row.spans, row.found.chunks, latents, strict=True)
    ]


def _encoded(
    engine: Engine, rows: Sequence[_Row], options: CompressOptions, room: Room | None
) -> list[F32 | LatentWireError]:
    """Latents of all windows of all rows. Windows with the same M share batches."""
    wanted = [(row.latents, chunk) for row in rows for chunk in row.sent]
    out: dict[int, F32 | LatentWireError] = {}
    for latents in sorted({m for m, _ in wanted}):
        places = [i for i, (m, _) in enumerate(wanted) if m == latents]
        made = encode(engine, [wanted[i][1] for i in places], latents, options.batch_size, room)
        out.update(zip(places, made, strict=True))
    return [out[i] for i in range(len(wanted))]


def _sent(
    engine: Engine,
    row: _Row,
    z: Sequence[F32 | LatentWireError],
    codes: Sequence[U8 | LatentWireError] | None,
    coding: _Coding,
    options: CompressOptions,
) -> Compressed | LatentWireError:
    faithful = True
    made: Message | LatentWireError
    try:
        sound = _all(z)
        if not all(map(len, sound)):
            what, fix = "the encoder knows nothing of this text", "--fallback size, or the encoder of tokens"
            raise RowError(2015, what, where=row.name, expected="expected a string of its lexicon, got none", fix=fix)
        quantised = _all(codes) if codes is not None else None
        if quantised is not None:
            coded = [message.code_codes(c) for c in quantised]
        else:
            coded = [message.code_latents(part, coding.codec) for part in sound]
        if not coded:
            assert row.limit is not None
            raise too_big(row.name, row.limit, row.least, options)
        if options.fallback == "check":
            held: Sequence[U8 | None] = quantised or [None] * len(sound)
            checked = zip(sound, held, coded, strict=True)
            faithful = min(fidelity(engine, *parts) for parts in checked) >= options.min_fidelity
        info = engine.bundle.manifest.encoder
        spans = _spans(row, [c.m for c in coded])
        made = message.from_chunks(coded, info.d_z, info.model_id, spans=spans, truncated=row.found.truncated)
    except LatentWireError as e:
        made = e
    sent = choose(row.text, made, faithful, row.limit, options, row.name)
    if isinstance(sent, LatentWireError):
        return sent
    truncated = row.found.truncated and not sent.is_text
    return Compressed(sent, row.found.tokens, len(row.text.encode()), truncated)


def _as_text(row: _Row, options: CompressOptions) -> Compressed | LatentWireError:
    try:
        packed = message.from_text(row.text)
    except LatentWireError as e:
        return e
    size = len(packed.pack())
    if row.limit is not None and size > row.limit:
        return too_big(row.name, row.limit, size, options)
    return Compressed(packed, row.found.tokens, len(row.text.encode()), False)


def _all(parts: Sequence[T | LatentWireError]) -> list[T]:
    """The parts, none of which is an error; else the first error is raised."""
    out: list[T] = []
    for part in parts:
        if isinstance(part, LatentWireError):
            raise part
        out.append(part)
    return out
