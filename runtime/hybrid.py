"""Payload of codec hybrid: latents, and beside them strings of the text that arrive as they are. Pure bytes.

    inner codec u8, inner profile u8, span coding u8, 0
    count; for each span slot step and length; for coding 1 the length of what follows    (varints)
    the spans' UTF-8 end to end, coded
    latents: a payload of the inner codec

The latents stand last, so that M follows from the payload's length as it does for the other codecs. One value has
one byte string, but for what zstd makes of the spans. Specified in ``docs/frame.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..core.errors import FrameError
from . import codec as codecs
from .codec import Codec

PLAIN: Final = 0
ZSTD: Final = 1
HEAD: Final = 4
MAX_SPANS: Final = 65_535
MAX_SPAN_BYTES: Final = 1 << 20
"""UTF-8 bytes of all spans of one frame."""
INNER: Final = (Codec.F16, Codec.I8, Codec.FSQ)
_LONGEST_VARINT: Final = 3


@dataclass(frozen=True)
class Span:
    """One protected string.

    Attributes:
        slot: in which M-th part of the text the string begins.
        text: the string, not empty.
    """

    slot: int
    text: str


@dataclass(frozen=True)
class Hybrid:
    """A payload taken apart.

    Attributes:
        codec: of the latents: f16, i8 or fsq.
        profile: of that codec.
        spans: in the order of the text.
        latents: payload of that codec.
    """

    codec: Codec
    profile: int
    spans: tuple[Span, ...]
    latents: bytes

    def pack(self) -> bytes:
        """The payload; the shorter of both span codings.

        Raises:
            FrameError: 1106 too many spans, or too many bytes of them.
        """
        table, raw = bytearray(), bytearray()
        slot = 0
        for span in self.spans:
            data = span.text.encode()
            table += _varint(span.slot - slot) + _varint(len(data))
            raw += data
            slot = span.slot
        _check_limits(len(self.spans), len(raw))
        small = _zstd(bytes(raw)) if raw else b""
        framed = _varint(len(small)) + small
        coding, coded = (ZSTD, framed) if raw and len(framed) < len(raw) else (PLAIN, bytes(raw))
        head = bytes([self.codec, self.profile, coding, 0])
        return head + _varint(len(self.spans)) + bytes(table) + coded + self.latents


def parse(payload: bytes, m: int | None = None, d_z: int | None = None) -> Hybrid:
    """Read and check everything of a payload but its latents.

    Args:
        payload: of the frame.
        m: latents of the frame; slots must be below. None: not checked.
        d_z: for the length and the form of the latents; None: these are not checked.

    Raises:
        FrameError: 1105 a length runs past the payload or does not fit M and d_z; 1106 limits; 1107 unknown inner
            codec, profile or span coding; 1108 not canonical, spans that are empty or not UTF-8, slots beyond M.
    """
    if len(payload) < HEAD:
        raise FrameError(1105, "hybrid payload ends inside its head", expected=f"expected {HEAD}, got {len(payload)}")
    inner, coding = _check_head(payload)
    reader = _Reader(payload)
    count = reader.varint()
    _check_limits(count, 0)
    if 2 * count > len(payload) - reader.at:
        raise FrameError(1105, "more spans than the payload has room for", where=f"payload byte {reader.at}")
    steps, lengths = [], []
    for _ in range(count):
        steps.append(reader.varint())
        lengths.append(reader.varint())
        _check_limits(count, lengths[-1])
    total = sum(lengths)
    _check_limits(count, total)
    at = reader.at
    if coding == ZSTD:
        raw = _unzstd(reader.take(reader.varint()), total, at)
    else:
        raw = reader.take(total)
    spans = _spans(raw, steps, lengths, m, at)
    found = Hybrid(inner, payload[1], spans, payload[reader.at :])
    if m is not None and d_z is not None:
        codecs.check_payload(found.codec, found.profile, m, d_z, found.latents)
    return found


def latents_in(payload: bytes, d_z: int) -> int:
    """M of a payload.

    Raises:
        FrameError: as ``parse``; 1105 no whole number of latents.
    """
    found = parse(payload)
    return codecs.latents_in(found.codec, found.profile, d_z, len(found.latents))


def overhead(spans: Sequence[Span]) -> int:
    """Bytes that a payload with these spans has beside its latents."""
    return len(Hybrid(Codec.F16, 0, tuple(spans), b"").pack())


def _check_head(payload: bytes) -> tuple[Codec, int]:
    if payload[0] not in INNER:
        expected = f"expected one of {', '.join(str(int(c)) for c in INNER)}, got {payload[0]}"
        raise FrameError(1107, "unknown codec inside hybrid", where="payload byte 0", expected=expected)
    inner = codecs.check_known(payload[0], payload[1])
    if payload[2] not in (PLAIN, ZSTD):
        expected = f"expected 0 or 1, got {payload[2]}"
        raise FrameError(1107, "unknown span coding", where="payload byte 2", expected=expected)
    if payload[3]:
        raise FrameError(1108, "reserved byte of hybrid is not zero", where="payload byte 3")
    return inner, payload[2]


def _spans(raw: bytes, steps: list[int], lengths: list[int], m: int | None, where: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    at = slot = 0
    for step, length in zip(steps, lengths, strict=True):
        slot += step
        if not length or (m is not None and slot >= m):
            what = f"span {len(spans)} is empty" if not length else f"span {len(spans)} stands at latent {slot} of {m}"
            raise FrameError(1108, what, where=f"payload byte {where}")
        try:
            spans.append(Span(slot, raw[at : at + length].decode()))
        except UnicodeDecodeError as e:
            raise FrameError(1108, f"span {len(spans)} is not UTF-8", where=f"payload byte {where}") from e
        at += length
    return tuple(spans)


def _check_limits(count: int, size: int) -> None:
    for name, value, limit in (("spans", count, MAX_SPANS), ("bytes of spans", size, MAX_SPAN_BYTES)):
        if value > limit:
            raise FrameError(1106, f"too many {name}", expected=f"expected at most {limit}, got {value}")


class _Reader:
    """Bytes of a payload, from behind its head on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = HEAD

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises FrameError 1105 where there are fewer."""
        if count > len(self._data) - self.at:
            expected = f"expected {count} more bytes, got {len(self._data) - self.at}"
            raise FrameError(1105, "spans run past the payload", where=f"payload byte {self.at}", expected=expected)
        self.at += count
        return self._data[self.at - count : self.at]

    def varint(self) -> int:
        """The next number, 7 bits a byte, low ones first. Raises FrameError 1105, 1108 not the shortest form."""
        start, value = self.at, 0
        for shift in range(0, 7 * _LONGEST_VARINT, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise FrameError(1108, "a number is not in its shortest form", where=f"payload byte {start}")
                return value
        raise FrameError(1106, "a number is too large", where=f"payload byte {start}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@functools.cache
def _dictionary() -> Any:
    import zstandard

    from .span_dictionary import SPAN_DICTIONARY

    return zstandard.ZstdCompressionDict(SPAN_DICTIONARY)


@functools.cache
def _compressor() -> Any:
    import zstandard

    no = {"write_content_size": 0, "write_dict_id": 0, "write_checksum": 0}
    how = zstandard.ZstdCompressionParameters.from_level(19, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **no)
    return zstandard.ZstdCompressor(compression_params=how, dict_data=_dictionary())


def _zstd(raw: bytes) -> bytes:
    return bytes(_compressor().compress(raw))


def _unzstd(coded: bytes, total: int, where: int) -> bytes:
    """Exactly ``total`` bytes, which were checked against the limit."""
    import zstandard

    magicless = zstandard.FORMAT_ZSTD1_MAGICLESS
    try:
        if not total:
            raise FrameError(1108, "no spans, and yet coded with zstd", where=f"payload byte {where}")
        if zstandard.get_frame_parameters(coded, format=magicless).content_size != zstandard.CONTENTSIZE_UNKNOWN:
            # The library would allocate whatever stands there.
            raise FrameError(1108, "spans declare a size of their own", where=f"payload byte {where}")
        reader = zstandard.ZstdDecompressor(dict_data=_dictionary(), format=magicless, max_window_size=1 << 27)
        raw = bytes(reader.decompress(coded, max_output_size=total, allow_extra_data=False))
    except zstandard.ZstdError as e:
        what = "spans are not exactly one sound zstd frame"
        raise FrameError(1108, what, where=f"payload byte {where}", expected=str(e)) from e
    if len(raw) != total:
        expected = f"expected {total} bytes, got {len(raw)}"
        raise FrameError(
            1105, "spans are longer or shorter than said", where=f"payload byte {where}", expected=expected
        )
    return raw
