"""Latents to the codes that a frame of codec ``fsq`` carries, and back, with the quantiser of a bundle.

Knows nothing of bits and frames: see ``fsq.py`` and ``message.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, LatentWireError
from ..engines.base import F32, Engine

U8 = npt.NDArray[np.uint8]

BLOCK: Final = 65536
"""Latents in one call of the graph, each computed alone: 64 MiB of them at d_z 256."""


def require_quantiser(engine: Engine) -> None:
    """Raise InputError 2111 where the bundle's encoder was trained without a quantiser."""
    if "quantise" not in engine.bundle.manifest.graphs:
        raise InputError(
            2111,
            "this bundle has no quantiser",
            where="option codec fsq",
            expected="expected a bundle whose checkpoint was trained with fsq_profile",
            fix="use codec i8 or f16",
        )


def to_codes(engine: Engine, parts: Sequence[F32 | LatentWireError]) -> list[U8 | LatentWireError]:
    """Latents f32 [m,d_z] of every part to codes uint8 [m,D]; errors stay where they are."""
    sound = [z for z in parts if not isinstance(z, LatentWireError)]
    if not sound:
        return [z for z in parts if isinstance(z, LatentWireError)]
    whole = np.concatenate(sound)[None]
    found = [engine.quantise(whole[:, at : at + BLOCK])[0] for at in range(0, whole.shape[1], BLOCK)]
    codes = np.concatenate(found).astype(np.uint8)
    pieces = iter(np.split(codes, np.cumsum([len(z) for z in sound])[:-1]))
    return [z if isinstance(z, LatentWireError) else next(pieces) for z in parts]


def to_latents(engine: Engine, codes: U8) -> F32:
    """Codes uint8 [m,D] to latents f32 [m,d_z]."""
    whole = codes.astype(np.int64)[None]
    return np.concatenate([engine.dequantise(whole[:, at : at + BLOCK])[0] for at in range(0, len(codes), BLOCK)])
