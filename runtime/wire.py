"""The wire frame, LWF 1.0: header, extensions, payload, checksum. Pure bytes.

In: a payload and what its header says. Out: bytes that any reader can check without knowing their sender.
Knows nothing of texts, tokenizers and models. Specified in ``docs/frame.md``.

    0  magic 89 4C 57      3  version      4  codec       5  profile     6  flags    7  extension words
    8  M u16              10  d_z u16     12  model id   16  payload length u32     20  CRC32C u32
    24 extensions, payload
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import google_crc32c

from ..core.errors import FrameError, ModelError
from . import codec as codecs
from . import hybrid, tlv
from .codec import Codec

MAGIC: Final = b"\x89LW"
MAJOR: Final = 1
HEADER_SIZE: Final = 24
_FIELDS: Final = struct.Struct("<3s5B2H4sI")
_CRC: Final = struct.Struct("<I")

TRUNCATED: Final = 0x01
FALLBACK: Final = 0x02
_FLAGS: Final = TRUNCATED | FALLBACK
NO_MODEL: Final = bytes(4)


@dataclass(frozen=True)
class Frame:
    """One frame, decoded as far as its own bytes allow.

    Attributes:
        codec: a ``Codec``.
        payload: bytes of the codec and profile.
        m: latents in the payload; 0 for text.
        d_z: dimensions of a latent after decoding; 0 for text.
        model_id: first 4 bytes of the encoder's fingerprint; zeros for text.
        profile: variant of the codec.
        flags: ``TRUNCATED`` | ``FALLBACK``.
        extensions: in the order of the bytes.
        minor: minor version of the format.
    """

    codec: int
    payload: bytes
    m: int = 0
    d_z: int = 0
    model_id: bytes = NO_MODEL
    profile: int = 0
    flags: int = 0
    extensions: tuple[tlv.Tlv, ...] = ()
    minor: int = 0

    def pack(self) -> bytes:
        """Bytes of this frame, checked by the reader before they leave.

        Raises:
            FrameError: 1105-1108, whatever the reader would say.
        """
        _check_limits(self.m, self.d_z, len(self.payload))
        extensions = tlv.pack(self.extensions)
        version, words = MAJOR << 4 | self.minor, len(extensions) // 4
        small = (version, self.codec, self.profile, self.flags, words)
        if max(small) > 255 or min(small) < 0 or len(self.model_id) != 4:
            raise FrameError(1106, "a header field does not fit", expected=f"{small}, model id {self.model_id.hex()}")
        head = _FIELDS.pack(MAGIC, *small, self.m, self.d_z, self.model_id, len(self.payload))
        body = extensions + self.payload
        data = head + _CRC.pack(checksum(head, body)) + body
        unpack(data)
        return data

    @property
    def chunk(self) -> tuple[int, int]:
        """``(index, count)``: which part of its text this frame is."""
        return tlv.chunk_of(self.extensions)


@dataclass(frozen=True)
class _Header:
    frame: Frame
    words: int
    payload: int
    crc: int

    @property
    def size(self) -> int:
        return HEADER_SIZE + 4 * self.words + self.payload


def checksum(head: bytes, body: bytes) -> int:
    """CRC32C of the first 20 bytes followed by everything after byte 24."""
    return int(google_crc32c.extend(google_crc32c.value(head), body))


def payload_checksum(payload: bytes) -> int:
    """CRC32C of a payload alone, as tables of frames store it."""
    return int(google_crc32c.value(payload))


def latents_in(codec: int, profile: int, d_z: int, payload: bytes) -> int:
    """M of a payload without its header: every codec but text tells it by its length.

    Raises:
        FrameError: 1105; for hybrid 1105-1108.
    """
    if codec == Codec.HYBRID:
        return hybrid.latents_in(payload, d_z)
    return codecs.latents_in(codec, profile, d_z, len(payload))


def unpack(data: bytes, *, model_id: bytes | None = None) -> Frame:
    """Exactly one frame.

    Args:
        data: the frame and nothing else.
        model_id: the reader's encoder; None accepts any.

    Raises:
        FrameError: 1101-1108.
        ModelError: 3101 made by another encoder.
    """
    header = _read_header(data)
    if len(data) > header.size:
        expected = f"expected {header.size} bytes, got {len(data)}"
        raise FrameError(1105, "bytes follow the frame", where=f"byte {header.size}", expected=expected)
    frame = _finish(data, header)
    if model_id is not None:
        check_model(frame, model_id)
    return frame


def unpack_all(data: bytes, *, model_id: bytes | None = None) -> list[Frame]:
    """Frames end to end. Nothing after a bad frame is read.

    Raises:
        FrameError: 1101-1108; byte offsets count from the bad frame's first byte.
        ModelError: 3101.
    """
    frames: list[Frame] = []
    at = 0
    while at < len(data):
        header = _read_header(data[at : at + HEADER_SIZE])
        frames.append(unpack(data[at : at + header.size], model_id=model_id))
        at += header.size
    if not frames:
        raise FrameError(1102, "no frame, the input is empty", expected=f"expected at least {HEADER_SIZE} bytes")
    return frames


def read_frames(stream: BinaryIO) -> Iterator[Frame]:
    """Frames from a file or socket, one at a time and never more than one in memory.

    Raises:
        FrameError: 1101-1108; the stream is then at an unknown place and must not be read on.
    """
    while head := stream.read(HEADER_SIZE):
        header = _read_header(head)
        yield _finish(head + stream.read(header.size - HEADER_SIZE), header)


def check_model(frame: Frame, model_id: bytes) -> None:
    """Refuse latents of another encoder. Text frames belong to every reader.

    Raises:
        ModelError: 3101.
    """
    if frame.codec != Codec.TEXT and frame.model_id != model_id:
        raise ModelError(
            3101,
            "frame was made by another encoder",
            where="byte 12",
            expected=f"expected model id {model_id.hex()}, got {frame.model_id.hex()}",
            fix="use the bundle whose encoder made the frame, or compress the text again",
        )


def validate(frame: Frame) -> None:
    """Everything the reader says about a frame whose bytes arrived whole, as rows of a table are.

    Raises:
        FrameError: 1105-1108.
    """
    _check_limits(frame.m, frame.d_z, len(frame.payload))
    _check_fields(frame)
    _check_fingerprint(frame)
    if frame.codec == Codec.HYBRID:
        hybrid.parse(frame.payload, frame.m, frame.d_z)
    else:
        codecs.check_payload(frame.codec, frame.profile, frame.m, frame.d_z, frame.payload)


def _read_header(data: bytes) -> _Header:
    if data[:3] != MAGIC[: len(data)]:
        got = f"expected {MAGIC.hex(' ')}, got {data[:3].hex(' ')}"
        raise FrameError(1101, "not a LatentWire frame", where="byte 0", expected=got)
    if len(data) > 3 and data[3] >> 4 != MAJOR:
        fix = "read it with the version of latentwire that wrote it"
        got = f"expected {MAJOR}, got {data[3] >> 4}"
        raise FrameError(1103, "frame of another major version", where="byte 3", expected=got, fix=fix)
    if len(data) < HEADER_SIZE:
        got = f"expected {HEADER_SIZE} bytes, got {len(data)}"
        raise FrameError(1102, "frame ends inside its header", where=f"byte {len(data)}", expected=got)
    _, version, codec, profile, flags, words, m, d_z, model_id, length = _FIELDS.unpack_from(data)
    _check_limits(m, d_z, length)
    frame = Frame(codec, b"", m, d_z, model_id, profile, flags, minor=version & 15)
    return _Header(frame, words, length, _CRC.unpack_from(data, 20)[0])


def _finish(data: bytes, header: _Header) -> Frame:
    if len(data) < header.size:
        expected = f"expected {header.size} bytes, got {len(data)}"
        raise FrameError(1102, "frame is cut short", where=f"byte {len(data)}", expected=expected)
    actual = checksum(data[:20], data[HEADER_SIZE:])
    if actual != header.crc:
        expected = f"expected {header.crc:08x}, got {actual:08x}"
        raise FrameError(1104, "checksum does not match, the frame is damaged", where="byte 20", expected=expected)
    head = header.frame
    start = HEADER_SIZE + 4 * header.words
    _check_fields(head)  # before extensions are parsed: an unknown codec says more than a strange extension
    frame = Frame(
        head.codec,
        data[start:],
        head.m,
        head.d_z,
        head.model_id,
        head.profile,
        head.flags,
        tlv.parse(data[HEADER_SIZE:start]),
        head.minor,
    )
    validate(frame)
    return frame


def _check_limits(m: int, d_z: int, length: int) -> None:
    for name, value, limit, at in (
        ("M", m, codecs.MAX_LATENTS, 8),
        ("d_z", d_z, codecs.MAX_DIMS, 10),
        ("payload length", length, codecs.MAX_PAYLOAD, 16),
    ):
        if not 0 <= value <= limit:
            expected = f"expected at most {limit}, got {value}"
            raise FrameError(1106, f"{name} over the limit", where=f"byte {at}", expected=expected)


def _check_fields(frame: Frame) -> None:
    codec = codecs.check_known(frame.codec, frame.profile)
    if frame.flags & ~_FLAGS:
        expected = f"expected only bits {_FLAGS:#04x}, got {frame.flags:#04x}"
        raise FrameError(1107, "unknown flag", where="byte 6", expected=expected)
    if codec == Codec.TEXT:
        if frame.m or frame.d_z or frame.model_id != NO_MODEL:
            raise FrameError(1108, "M, d_z and model id of a text frame must be 0", where="byte 8")
    elif not (frame.m and frame.d_z):
        expected = f"expected at least 1, got M {frame.m}, d_z {frame.d_z}"
        raise FrameError(1108, "a frame of latents without latents", where="byte 8", expected=expected)


def _check_fingerprint(frame: Frame) -> None:
    for item in frame.extensions:
        if item.type == tlv.FINGERPRINT and item.value[:4] != frame.model_id:
            expected = f"expected {frame.model_id.hex()}, got {item.value[:4].hex()}"
            raise FrameError(1108, "fingerprint does not begin with the model id", where="byte 24", expected=expected)
