"""Payloads of a wire frame: latents to bytes and back, bit exact. numpy only.

In: Z, f32 [M, d_z], or a text. Out: payload bytes. Knows nothing of headers and checksums.
Every payload but zstd is canonical: one value has exactly one byte string, and ``check_payload`` refuses the
others. The writers below produce only what it accepts. Specified in ``docs/frame.md``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from ..core.errors import FrameError, LatentError
from . import fsq

F32 = npt.NDArray[np.float32]

MAX_LATENTS: Final = 4096
MAX_DIMS: Final = 16384
MAX_PAYLOAD: Final = 64 << 20
MAX_TEXT: Final = 64 << 20
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)


class Codec(IntEnum):
    """Codec byte of the header. LM is reserved: no payload is defined."""

    F16 = 1
    I8 = 2
    FSQ = 3
    TEXT = 4
    HYBRID = 5
    LM = 6


PROFILES: Final[dict[int, tuple[int, ...]]] = {
    Codec.F16: (0,),
    Codec.I8: (0,),
    Codec.FSQ: tuple(fsq.PROFILES),
    Codec.TEXT: (0, 1),
    Codec.HYBRID: (0,),
}
"""Profiles that this reader knows, by codec."""

BY_NAME: Final = {"f16": Codec.F16, "i8": Codec.I8, "fsq": Codec.FSQ, "hybrid": Codec.HYBRID, "text": Codec.TEXT}
"""Codecs that this writer offers."""


def codec_name(codec: int, profile: int = 0) -> str:
    """``f16``, ``i8``, ``fsq/1``, ``text``, ``text/1``."""
    try:
        name = Codec(codec).name.lower()
    except ValueError:
        name = f"codec {codec}"
    return f"{name}/{profile}" if profile else name


def check_known(codec: int, profile: int) -> Codec:
    """The codec, if this reader knows it and its profile.

    Raises:
        FrameError: 1107.
    """
    known = PROFILES.get(codec)
    fix = "read it with a newer version of latentwire"
    if known is None:
        names = ", ".join(f"{c} {Codec(c).name.lower()}" for c in PROFILES)
        raise FrameError(1107, f"unknown codec {codec}", where="byte 4", expected=f"expected one of {names}", fix=fix)
    if profile not in known:
        name = Codec(codec).name.lower()
        expected = f"expected one of {', '.join(map(str, known))}"
        raise FrameError(1107, f"unknown profile {profile} of codec {name}", where="byte 5", expected=expected, fix=fix)
    return Codec(codec)


def payload_size(codec: int, profile: int, m: int, d_z: int) -> int | None:
    """Bytes that ``m`` latents take; None for text and hybrid, whose length is their own."""
    match codec:
        case Codec.F16:
            return 2 * m * d_z
        case Codec.I8:
            return 4 * m + m * d_z
        case Codec.FSQ:
            return fsq.packed_size(profile, m)
    return None


def latents_in(codec: int, profile: int, d_z: int, size: int) -> int:
    """How many latents a payload of ``size`` bytes holds: the inverse of ``payload_size``.

    Raises:
        FrameError: 1105 no whole number of latents has this size.
    """
    per_latent = {Codec.F16: 2.0 * d_z, Codec.I8: 4.0 + d_z}.get(Codec(codec))
    m = int(size / (per_latent if per_latent is not None else fsq.bits_per_latent(profile) / 8))
    if size == 0 or payload_size(codec, profile, m, d_z) != size:
        name = codec_name(codec, profile)
        raise FrameError(1105, f"{size} bytes are no whole number of {name} latents of {d_z} dimensions")
    return m


def check_payload(codec: int, profile: int, m: int, d_z: int, payload: bytes) -> None:
    """Refuse a payload that its writer could not have made. For hybrid see ``hybrid.parse``.

    Raises:
        FrameError: 1105 length, 1106 decoded text over the limit, 1108 not canonical.
    """
    want = payload_size(codec, profile, m, d_z)
    if want is not None and len(payload) != want:
        raise FrameError(1105, "payload length does not fit M and d_z", expected=f"expected {want}, got {len(payload)}")
    match codec:
        case Codec.F16:
            _check_f16(payload)
        case Codec.I8:
            _check_i8(payload, m, d_z)
        case Codec.FSQ:
            fsq.check_padding(profile, m, payload)
        case Codec.TEXT:
            decode_text(payload, profile)


def encode_latents(z: F32, codec: Codec) -> bytes:
    """Latents f32 [M, d_z] to a payload (profile 0).

    Raises:
        LatentError: 3001 a value is NaN, infinite or too large for the codec.
        FrameError: 1107 the codec does not hold latents or needs a trained quantiser.
    """
    if not np.isfinite(z).all():
        raise LatentError(3001, "latents are not finite", expected=f"{int((~np.isfinite(z)).sum())} bad of {z.size}")
    match codec:
        case Codec.F16:
            with np.errstate(over="ignore"):
                half = z.astype("<f2")
            if not np.isfinite(half).all():
                biggest = float(np.abs(z).max())
                raise LatentError(3001, "latents do not fit f16", expected=f"expected at most 65504, got {biggest:.4g}")
            return half.tobytes()
        case Codec.I8:
            scales, codes = _quantise_i8(z)
            return scales.astype("<f4").tobytes() + codes.tobytes()
    raise FrameError(1107, f"codec {codec_name(codec)} cannot be written from latents", expected="expected f16 or i8")


def decode_latents(payload: bytes, codec: int, profile: int, m: int, d_z: int) -> F32:
    """A checked payload to latents f32 [M, d_z].

    Raises:
        FrameError: 1107 the codec needs a trained quantiser, or holds no latents.
    """
    match codec:
        case Codec.F16:
            return np.frombuffer(payload, "<f2").reshape(m, d_z).astype(np.float32)
        case Codec.I8:
            scales = np.frombuffer(payload, "<f4", count=m).astype(np.float32)
            codes = np.frombuffer(payload, np.int8, offset=4 * m).reshape(m, d_z)
            return codes.astype(np.float32) * scales[:, None]
    what = f"codec {codec_name(codec, profile)} cannot be turned into latents here"
    raise FrameError(1107, what, where="byte 4", fix="use a bundle whose encoder was trained with this quantiser")


def encode_text(text: str, profile: int = 0) -> bytes:
    """A text to a payload: 0 UTF-8, 1 zstd (level 19, content size declared).

    Raises:
        FrameError: 1106 over 64 MiB.
    """
    raw = text.encode()
    if len(raw) > MAX_TEXT:
        raise FrameError(1106, "text too long for a frame", expected=f"expected at most {MAX_TEXT}, got {len(raw)}")
    if profile == 0:
        return raw
    import zstandard

    return bytes(zstandard.ZstdCompressor(level=19, write_content_size=True).compress(raw))


def decode_text(payload: bytes, profile: int) -> str:
    """A payload to its text.

    Raises:
        FrameError: 1106 declared size over 64 MiB; 1108 not UTF-8, or not exactly one sound zstd frame.
    """
    raw = payload if profile == 0 else _unzstd(payload)
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise FrameError(1108, "text payload is not UTF-8", where=f"payload byte {e.start}") from e


def _check_f16(payload: bytes) -> None:
    finite = np.isfinite(np.frombuffer(payload, "<f2"))
    if not finite.all():
        at = 2 * int(np.argmin(finite))
        raise FrameError(1108, "f16 payload holds a value that is not finite", where=f"payload byte {at}")


def _check_i8(payload: bytes, m: int, d_z: int) -> None:
    scales = np.frombuffer(payload, "<f4", count=m)
    codes = np.frombuffer(payload, np.int8, offset=4 * m).reshape(m, d_z)
    sound = np.isfinite(scales) & ((scales >= _SMALLEST_SCALE) | ((scales == 0) & ~np.signbit(scales)))
    if not sound.all():
        row = int(np.argmin(sound))
        raise FrameError(
            1108, f"i8 scale {row} is not zero or a normal positive number", where=f"payload byte {4 * row}"
        )
    if (codes == -128).any():
        at = 4 * m + int(np.argmax(codes.ravel() == -128))
        raise FrameError(1108, "i8 code -128 is not used", where=f"payload byte {at}")
    peak = np.abs(codes).max(axis=1)
    wrong = peak != np.where(scales > 0, 127, 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"i8 latent {row} is not scaled to its largest value"
        raise FrameError(1108, what, where=f"payload byte {4 * m + row * d_z}")


def _quantise_i8(z: F32) -> tuple[F32, npt.NDArray[np.int8]]:
    """Scales f32 [M] = max |z| / 127 (0 when that is below the normal range) and codes int8 [M, d_z]."""
    scales = (np.abs(z).max(axis=1) / np.float32(127)).astype(np.float32)
    scales[scales < _SMALLEST_SCALE] = 0
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(z / safe), -127, 127)
    codes[scales == 0] = 0
    return scales, codes.astype(np.int8)


def _unzstd(payload: bytes) -> bytes:
    import zstandard

    try:
        if payload[:4] != _ZSTD_MAGIC:
            raise FrameError(1108, "text payload is not a zstd frame", where="payload byte 0")
        size = zstandard.get_frame_parameters(payload).content_size
        if size in (0, zstandard.CONTENTSIZE_UNKNOWN):
            raise FrameError(1108, "zstd payload does not declare its size", where="payload byte 4")
        if size > MAX_TEXT:
            raise FrameError(1106, "decoded text over the limit", expected=f"expected at most {MAX_TEXT}, got {size}")
        return bytes(zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False))
    except zstandard.ZstdError as e:
        raise FrameError(1108, "text payload is not exactly one sound zstd frame", expected=str(e)) from e
