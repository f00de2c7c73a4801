"""Bytes on the wire: a text plain and compressed, latents as frames. Frame sizes as in ``docs/frame.md``."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import zstandard

HEADER = 24
"""Bytes of a frame without extensions, in front of its payload."""
HYBRID_HEAD = 4
"""Bytes in front of the strings of a payload of codec hybrid."""
FSQ_BITS = {1: 32, 2: 60}
"""Bits a latent of each FSQ profile."""


def text_bytes(text: str) -> dict[str, int]:
    """UTF-8, zlib level 9, zstd level 19, and frames of the first and the last; where no text is, nothing travels."""
    if not text:
        return dict.fromkeys(("utf8", "zlib", "zstd", "frame text", "frame text/1"), 0)
    raw = text.encode()
    small = len(zstandard.ZstdCompressor(level=19, write_content_size=True).compress(raw))
    sizes = {"utf8": len(raw), "zlib": len(zlib.compress(raw, 9)), "zstd": small}
    return sizes | {"frame text": HEADER + len(raw), "frame text/1": HEADER + small}


def latent_bytes(count: int, d_z: int, profile: int = 0) -> dict[str, int]:
    """Frames of ``count`` latents of width ``d_z``, by codec; ``profile`` of the FSQ quantiser, 0 without one."""
    sizes = {"frame f16": HEADER + 2 * count * d_z, "frame i8": HEADER + count * (4 + d_z)}
    return sizes | ({f"frame fsq/{profile}": HEADER + (count * FSQ_BITS[profile] + 7) // 8} if profile else {})


def hybrid_bytes(inner: int, strings: Sequence[str]) -> dict[str, int]:
    """A frame of codec hybrid with plain strings, which a writer may still compress.

    Args:
        inner: bytes of a frame of the latents alone, fewer than 128 of them.
        strings: beside them; each tells in one byte how many latents behind the one before it belongs.
    """
    lengths = [len(s.encode()) for s in strings]
    return {"frame hybrid": inner + HYBRID_HEAD + _varint(len(lengths)) + sum(1 + _varint(n) + n for n in lengths)}


def _varint(value: int) -> int:
    """Bytes of LEB128."""
    return max(1, -(-value.bit_length() // 7))
