"""An engine whose prompts have latents, so that the gates of ``gate_same`` are run on layers that read them.

Every prompt gets latents of its own, made from its second position's embedding: two rows of a batch read different
ones, a row alone the same as in a batch, and one that grew by a token the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..engines.base import F32, I64, Engine
from ..engines.buffers import Buffers
from ..engines.bundle import Bundle
from .gate_same import GATES, Gate

LATENTS: Final = 6
"""Slots of a row; 1 to so many hold a latent."""
SEED: Final = 7


@dataclass(frozen=True)
class Reading:
    """Any engine; what is not here is the engine's own.

    Args:
        engine: of a bundle with a part ``cross``.
    """

    engine: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``Engine.prefill``, behind what layers read of the rows' latents."""
        read = self.engine.cross(self.latents(inputs_embeds))
        if buffers.cross:
            # Rows of a larger batch: its other rows keep theirs.
            for name, array in read.items():
                buffers.cross[name][...] = array
        else:
            buffers.cross = {name: np.array(array) for name, array in read.items()}
        self.engine.prefill(buffers, inputs_embeds, lengths)

    def latents(self, inputs_embeds: F32) -> F32:
        """Latents float32 [B,M,d_z] of prompts float32 [B,T,H]."""
        d_z, hidden = self.engine.bundle.manifest.encoder.d_z, inputs_embeds.shape[2]
        rng = np.random.default_rng(SEED)
        into = rng.standard_normal((hidden, LATENTS * d_z)).astype(np.float32)
        word = inputs_embeds[:, min(1, inputs_embeds.shape[1] - 1)]
        word = word / np.linalg.norm(word, axis=1, keepdims=True)
        z: F32 = (word @ into).reshape(len(word), LATENTS, d_z)
        counts = 1 + (np.abs(word).argmax(axis=1) % LATENTS)
        z[np.arange(LATENTS) >= counts[:, None]] = 0
        return z


def read_gates(bundle: Bundle) -> dict[str, Gate]:
    """Every gate of ``gate_same`` once more, with latents, by its name here; none where no layer reads them."""
    return {f"{name}, latents read": _over(name) for name in GATES} if "cross" in bundle.manifest.graphs else {}


def _over(name: str) -> Gate:
    return lambda engine, few: replace(GATES[name](reading(engine), few), gate=f"{name}, latents read")


def reading(engine: Engine) -> Engine:
    """``engine`` with latents before every prompt, where its bundle's layers read them; else itself."""
    found: Engine = Reading(engine) if "cross" in engine.bundle.manifest.graphs else engine
    return found
