"""An engine that computes nothing: right shapes, no numbers. What the runtime asks of it can be counted at once.

In: a bundle, of which only the description and the tokenizers are read. Answers never stop by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ..engines.base import CPU_FILL, F32, I64, Engine
from ..engines.buffers import Buffers
from ..engines.bundle import Bundle


class DryEngine:
    """See ``engines.base.Engine``; takes whatever a call has and returns arrays of the promised shapes."""

    name = "dry"
    max_batch = 0
    max_prompt = 0
    fill = CPU_FILL

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._token = next(t for t in range(bundle.manifest.llm.vocab_size) if t not in bundle.manifest.llm.eos)

    def lanes(self) -> Sequence[Engine]:
        """None: how work is shared out must not change its counts."""
        return ()

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        """Ones where a latent stands, zeros after a short text's last one."""
        there = np.arange(latents)[None, :] < np.minimum(lengths, latents)[:, None]
        d_z = self.bundle.manifest.encoder.d_z
        return np.repeat(there[..., None].astype(np.float32), d_z, axis=2)

    def adapt(self, latents: F32) -> F32:
        """Zeros [B,M+K,H]."""
        manifest = self.bundle.manifest
        shape = (len(latents), latents.shape[1] + manifest.adapter.task_tokens, manifest.llm.hidden_size)
        return np.zeros(shape, np.float32)

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """Zeros [B,T,H]."""
        return np.zeros((*input_ids.shape, rows.shape[2]), np.float32)

    def alloc(self, batch: int, capacity: int) -> Buffers:
        """Everything but a cache."""
        llm = self.bundle.manifest.llm
        none: Mapping[str, Any] = {}
        tokens = np.full(batch, self._token, np.int64)
        embeds = np.zeros((batch, 1, llm.hidden_size), np.float32)
        return Buffers(
            batch, capacity, np.zeros(batch, np.int64), tokens, embeds, np.zeros((batch, 1), np.float32), none, none
        )

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64, *more: Any, **named: Any) -> None:
        """Nothing."""
        buffers.lengths[:] = lengths

    def decode(self, buffers: Buffers) -> None:
        """Nothing."""
        buffers.lengths += 1

    def close(self) -> None:
        """Nothing."""


def dry_engine(bundle: Bundle) -> Engine:
    """As an engine."""
    return cast(Engine, DryEngine(bundle))
