"""Extensions of a wire frame: type, length, value, padded with zeros to four bytes.

In: the extension region of one frame. Out: typed values. Knows nothing of payloads or checksums.
A type with the top bit set is critical: a reader that does not know it must refuse the frame.
Specified in ``docs/frame.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..core.errors import FrameError

CRITICAL: Final = 0x8000
MAX_WORDS: Final = 255
HEADER: Final = struct.Struct("<HH")
_CHUNK: Final = struct.Struct("<HH")
_U32: Final = struct.Struct("<I")

FINGERPRINT: Final = 0x8001
TEXT_BYTES: Final = 0x0002
TEXT_DIGEST: Final = 0x0003
CUSTOM_ID: Final = 0x0004
CHUNK: Final = 0x8005

NAMES: Final = {
    FINGERPRINT: "fingerprint",
    TEXT_BYTES: "text_bytes",
    TEXT_DIGEST: "text_sha256",
    CUSTOM_ID: "custom_id",
    CHUNK: "chunk",
}
_SIZES: Final = {FINGERPRINT: 32, TEXT_BYTES: 4, TEXT_DIGEST: 32, CHUNK: 4}


@dataclass(frozen=True)
class Tlv:
    """One extension.

    Attributes:
        type: u16; ``CRITICAL`` is its top bit.
        value: at most 65,535 bytes, in practice what fits into 255 words with its siblings.
    """

    type: int
    value: bytes


def fingerprint(digest: bytes) -> Tlv:
    """All 32 bytes of the encoder's fingerprint; the header carries the first four."""
    return Tlv(FINGERPRINT, digest)


def text_bytes(count: int) -> Tlv:
    """Length of the source text in UTF-8 bytes."""
    return Tlv(TEXT_BYTES, _U32.pack(count))


def text_digest(digest: bytes) -> Tlv:
    """SHA-256 of the source text's UTF-8 bytes."""
    return Tlv(TEXT_DIGEST, digest)


def custom_id(identifier: str) -> Tlv:
    """The sender's id of the row, UTF-8."""
    return Tlv(CUSTOM_ID, identifier.encode())


def chunk(index: int, count: int) -> Tlv:
    """This frame is part ``index`` (from 0) of ``count`` frames that belong to one text."""
    return Tlv(CHUNK, _CHUNK.pack(index, count))


def chunk_of(extensions: Iterable[Tlv]) -> tuple[int, int]:
    """``(index, count)`` of a frame; ``(0, 1)`` when it has no chunk extension."""
    for item in extensions:
        if item.type == CHUNK:
            index, count = _CHUNK.unpack(item.value)
            return index, count
    return 0, 1


def pack(extensions: Iterable[Tlv]) -> bytes:
    """Extensions in the order given, each padded to four bytes.

    Raises:
        FrameError: 1106 when they do not fit into 255 words.
    """
    out = bytearray()
    for item in extensions:
        if not 0 <= item.type <= 0xFFFF or len(item.value) > 0xFFFF:
            raise FrameError(1106, "extension too large", expected=f"type {item.type}, {len(item.value)} bytes")
        out += HEADER.pack(item.type, len(item.value)) + item.value + bytes(-len(item.value) % 4)
    if len(out) > 4 * MAX_WORDS:
        limit = 4 * MAX_WORDS
        raise FrameError(1106, "extensions too long", expected=f"expected at most {limit} bytes, got {len(out)}")
    return bytes(out)


def parse(region: bytes, *, offset: int = 24) -> tuple[Tlv, ...]:
    """Read and check a whole extension region.

    Args:
        region: bytes between the header and the payload; its length is a multiple of four.
        offset: where the region starts in the frame, for messages.

    Raises:
        FrameError: 1105 a value runs past the region; 1107 unknown critical type; 1108 wrong size,
            padding that is not zero, a type twice, or a value its type does not allow.
    """
    found: list[Tlv] = []
    at = 0
    while at < len(region):
        where = f"byte {offset + at}"
        kind, length = HEADER.unpack_from(region, at)
        end = at + HEADER.size + length
        stop = end + -length % 4
        if stop > len(region):
            raise FrameError(1105, f"extension 0x{kind:04x} runs past the extension region", where=where)
        if any(region[end:stop]):
            raise FrameError(1108, f"padding of extension 0x{kind:04x} is not zero", where=f"byte {offset + end}")
        item = Tlv(kind, region[at + HEADER.size : end])
        if any(kind == other.type for other in found):
            raise FrameError(1108, f"extension 0x{kind:04x} stands twice", where=where)
        _check(item, where)
        found.append(item)
        at = stop
    return tuple(found)


def describe(item: Tlv) -> tuple[str, str | int]:
    """Name and printable value, for ``latentwire inspect``."""
    name = NAMES.get(item.type, f"0x{item.type:04x}")
    if item.type == TEXT_BYTES:
        return name, int(_U32.unpack(item.value)[0])
    if item.type == CUSTOM_ID:
        return name, item.value.decode()
    if item.type == CHUNK:
        index, count = _CHUNK.unpack(item.value)
        return name, f"{index + 1} of {count}"
    return name, item.value.hex()


def _check(item: Tlv, where: str) -> None:
    if item.type not in NAMES:
        if item.type & CRITICAL:
            fix = "read it with a newer version of latentwire"
            raise FrameError(1107, f"unknown critical extension 0x{item.type:04x}", where=where, fix=fix)
        if item.type == 0:
            raise FrameError(1108, "extension type 0 is reserved", where=where)
        return
    size = _SIZES.get(item.type)
    if size is not None and len(item.value) != size:
        got = f"expected {size} bytes, got {len(item.value)}"
        raise FrameError(1108, f"extension {NAMES[item.type]} has a wrong size", where=where, expected=got)
    if item.type == CHUNK:
        index, count = _CHUNK.unpack(item.value)
        if index >= count:
            raise FrameError(1108, f"chunk {index} of {count} cannot be", where=where)
    if item.type == CUSTOM_ID:
        try:
            item.value.decode()
        except UnicodeDecodeError as e:
            raise FrameError(1108, "custom id is not UTF-8", where=where) from e
