"""Keys and values that latents put into an LLM's cache: what a prefix feature makes, and all that the LLM takes.

before   slots of their own behind BOS: what follows reads them, and moves on by as many positions
onto     added to what the LLM computed for the latents' own positions, once it has read the context: the
         latents themselves were read without
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """Slots of a batch.

    Attributes:
        keys: f32 [B,L,kv_heads,P,head_dim], before RoPE (but behind the LLM's own key norm, where it has one).
        values: f32 [B,L,kv_heads,P,head_dim].
        counts: int64 [B], slots of each row; those behind them mean nothing.
        onto: slot p is added to latent p; else slots are new ones.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    onto: bool


def latent_counts(latents: Tensor) -> Tensor:
    """Latents of each row, int64 [B], of f32 [B,M,d_z] whose empty slots are zero and come last."""
    return (latents != 0).any(-1).sum(-1)
