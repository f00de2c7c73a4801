"""When the text travels instead of its latents: the sender's own check of what it is about to send.

In: a text, its frames if there are any, the limit. Out: what is sent. A text frame that takes the place of latents
has flag bit 1 set, so the receiver knows that latents were asked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..core.errors import LatentWireError
from ..engines.base import F32, Engine
from . import codec as codecs
from . import message
from .fit import too_big
from .message import Coded, Message
from .options import CompressOptions
from .quantise import U8, to_latents

RESCUED: Final = (2014, 2015)
"""Errors of latents alone: their size, or that there are none. The text itself is sound."""


def fidelity(engine: Engine, z: F32, codes: U8 | None, coded: Coded) -> float:
    """Mean cosine between latents f32 [m,d_z] and what a receiver makes of their bytes; 1 is perfect.

    Two zero latents are alike; a zero latent and another one are not.
    """
    if codes is not None:
        back = to_latents(engine, codes)
    else:
        back = codecs.decode_latents(coded.payload, coded.codec, coded.profile, coded.m, z.shape[1])
    a, b = z.astype(np.float64), back.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), (a == b).all(axis=1))
    return float(alike.mean())


def choose(
    text: str,
    made: Message | LatentWireError,
    faithful: bool,
    limit: int | None,
    options: CompressOptions,
    where: str,
) -> Message | LatentWireError:
    """What is sent, or why nothing is.

    Args:
        text: as it would travel.
        made: frames of latents, or why there are none.
        faithful: the latents passed ``options.min_fidelity``.
        limit: most bytes.
        options: with the rule of falling back.
        where: the row, for messages.
    """
    if isinstance(made, LatentWireError):
        if options.fallback == "off" or (made.code not in RESCUED and options.fallback == "size"):
            return made
    elif options.fallback == "off":
        return made
    plain = message.from_text(text, fallback=True)
    size = len(plain.pack())
    if isinstance(made, Message) and faithful and size > len(made.pack()):
        return made
    if limit is None or size <= limit:
        return plain
    return made if isinstance(made, LatentWireError) else too_big(where, limit, size, options)
