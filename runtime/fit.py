"""How many latents a text may have: bytes that its frames may take, and the most latents that stay below. No arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from ..core.errors import RowError
from . import codec as codecs
from . import wire
from .codec import Codec
from .options import CompressOptions

CHUNK_MARK: Final = 8
"""Bytes of the extension that numbers chunks."""


def byte_limit(options: CompressOptions, text_bytes: int) -> int | None:
    """Most bytes of a text's frames; None: as many as it takes."""
    limits = [] if options.max_bytes is None else [options.max_bytes]
    limits += [] if options.ratio is None else [int(text_bytes / options.ratio)]
    return min(limits, default=None)


def frames_size(codec: Codec, profile: int, d_z: int, latents: Sequence[int], extra: int = 0) -> int:
    """Bytes of the frames of one text: ``latents`` of each chunk, ``extra`` bytes of spans in all."""
    heads = len(latents) * (wire.HEADER_SIZE + (CHUNK_MARK if len(latents) > 1 else 0))
    return heads + extra + sum(codecs.payload_size(codec, profile, m, d_z) or 0 for m in latents)


def most_latents(
    limit: int | None, asked: int, codec: Codec, profile: int, d_z: int, chunks: Sequence[int], extra: int = 0
) -> int:
    """The largest M up to ``asked`` whose frames take at most ``limit`` bytes; 0 where not even one latent fits.

    Args:
        limit: bytes; None: no limit.
        asked: M that would be used without a limit.
        codec: of the latents.
        profile: of the codec.
        d_z: width of a latent.
        chunks: tokens of each chunk; none has more latents than tokens.
        extra: bytes of the frames beside header and latents.
    """
    if limit is None:
        return asked
    sizes = range(1, asked + 1)
    return bisect_right(
        sizes, limit, key=lambda m: frames_size(codec, profile, d_z, [min(m, tokens) for tokens in chunks], extra)
    )


def too_big(where: str, limit: int, least: int, options: CompressOptions) -> RowError:
    """2014: the row cannot be had at the rate that was asked for."""
    asked = [f"--ratio {options.ratio:g}"] if options.ratio is not None else []
    asked += [f"--max-bytes {options.max_bytes}"] if options.max_bytes is not None else []
    fix = "ask for less"
    if options.codec == "hybrid":
        fix += ", or protect fewer strings with --protect marks"
    if options.fallback == "off":
        fix += ", or let short texts travel as text with --fallback size"
    expected = f"expected at most {limit} bytes ({', '.join(asked)}), got {least} at least"
    return RowError(2014, "text cannot be compressed to the rate asked for", where=where, expected=expected, fix=fix)
