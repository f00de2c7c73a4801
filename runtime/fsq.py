"""Bit packing of finite scalar quantisation codes. Projection to and from latents belongs to the encoder.

In: codes, uint8 [M, dims], each below ``levels``. Out: bytes, least significant bit first, dimensions in order,
no padding between latents, zero bits at the end. Knows nothing of weights.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ..core.errors import FrameError

PROFILES: Final = {1: (16, 2), 2: (20, 3)}
"""Profile -> (dimensions, bits a dimension): 16 x 4 levels and 20 x 8 levels."""


def profile_of(dims: int) -> int:
    """Profile whose latents have ``dims`` codes.

    Raises:
        FrameError: 1107 no profile has.
    """
    for profile, (own, _) in PROFILES.items():
        if own == dims:
            return profile
    known = ", ".join(str(own) for own, _ in PROFILES.values())
    raise FrameError(1107, f"no fsq profile has {dims} codes a latent", expected=f"expected one of {known}")


def bits_per_latent(profile: int) -> int:
    """32 for profile 1, 60 for profile 2."""
    dims, bits = PROFILES[profile]
    return dims * bits


def packed_size(profile: int, m: int) -> int:
    """Bytes of ``m`` latents."""
    return (m * bits_per_latent(profile) + 7) // 8


def pack_codes(codes: npt.NDArray[np.uint8], profile: int) -> bytes:
    """Codes [M, dims] to bytes.

    Raises:
        FrameError: 1108 wrong number of dimensions, or a code at or above the number of levels.
    """
    dims, bits = PROFILES[profile]
    if codes.ndim != 2 or codes.shape[1] != dims or (codes >= 1 << bits).any():
        raise FrameError(1108, "fsq codes do not fit their profile", expected=f"expected [M, {dims}] below {1 << bits}")
    spread = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(spread.ravel(), bitorder="little").tobytes()


def unpack_codes(payload: bytes, profile: int, m: int) -> npt.NDArray[np.uint8]:
    """Bytes to codes uint8 [M, dims]."""
    dims, bits = PROFILES[profile]
    flat = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little", count=m * dims * bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: npt.NDArray[np.uint8] = (flat.reshape(m, dims, bits) * weights).sum(axis=-1, dtype=np.uint8)
    return codes


def check_padding(profile: int, m: int, payload: bytes) -> None:
    """The bits after the last code must be zero.

    Raises:
        FrameError: 1108.
    """
    spare = 8 * len(payload) - m * bits_per_latent(profile)
    if spare and payload[-1] >> (8 - spare):
        raise FrameError(1108, "last bits of the fsq payload are not zero", where=f"payload byte {len(payload) - 1}")
