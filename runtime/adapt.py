"""Latents of several requests to rows of the LLM's embedding space.

In: one array [m,d_z] per request, lengths may differ. Out: rows f32 [B,R+K+V,H] and the latents padded to R slots:
request b owns rows 0..m-1, the K task rows stand at R, and behind them the V rows of prefix tuning. Knows nothing of
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engines.base import F32, Engine


def adapt(engine: Engine, latents: Sequence[F32]) -> tuple[F32, F32]:
    """Pad with zero latents to the longest (at least one), then run the adapter: rows, and latents f32 [B,R,d_z].

    Raises:
        LatentError: 3001, 3002 as ``Engine.adapt``.
    """
    capacity = max(1, *(len(z) for z in latents))
    padded = np.zeros((len(latents), capacity, engine.bundle.manifest.encoder.d_z), np.float32)
    for b, z in enumerate(latents):
        if len(z):
            padded[b, : len(z)] = z
    return engine.adapt(padded), padded
