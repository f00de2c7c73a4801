"""Calibration: an adapter's rows brought to the statistics of the LLM's own embeddings of text.

    embed_rms     rows * (r / r0): one factor for all rows, from the start on fixed; r is the RMS of the LLM's
                  embeddings of sample texts, r0 that of the adapter's rows for the same texts
    per_example   rows * (r / rms(rows of this text)): each text's latents together get the RMS of text
    anchor_text   (rows - m0) / s0 * s + m: mean m and deviation s of all numbers of one anchor text's embeddings, m0
                  and s0 those of the adapter's rows for sample texts

Never per row: forcing every vector to one RMS gave empty answers (training notes, section 4). Nor per dimension: the
deviations of a short anchor are too rough for that (SmolLM2-135M, real text through it: 0.16 nats a token worse). All
three leave real text embeddings as good as untouched, which is their test. Learned gains and biases of the adapter
stand before this.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

KINDS: Final = ("none", "embed_rms", "per_example", "anchor_text")
SMALLEST: Final = 1e-6


class Calibration(nn.Module):
    """One of ``KINDS`` but ``none``: f32 [B,M,H] -> f32 [B,M,H]. Does nothing until ``fit``."""

    factor: Tensor
    rms: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "embed_rms":
            self.register_buffer("factor", torch.ones(()))
        elif kind == "per_example":
            self.register_buffer("rms", torch.zeros(()))
        else:
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("shift", torch.zeros(()))

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        """``present`` bool [B,M,1]: rows that stand for a latent."""
        if self.kind == "embed_rms":
            return rows * self.factor
        if self.kind == "anchor_text":
            return rows * self.scale + self.shift
        own = per_text_rms(rows, present)
        # Before ``fit`` there is no goal yet.
        return rows * torch.where(self.rms > 0, self.rms / own.clamp(min=SMALLEST), torch.ones_like(own))

    @torch.no_grad()
    def fit(self, rows: Tensor, text: Tensor, anchor: Tensor) -> None:
        """Set the statistics.

        Args:
            rows: f32 [N,H], the adapter's rows for sample texts, not calibrated.
            text: f32 [T,H], the LLM's embeddings of the same texts.
            anchor: f32 [A,H], its embeddings of the anchor text.
        """
        rms = text.square().mean().sqrt()
        if self.kind == "embed_rms":
            self.factor.copy_(rms / rows.square().mean().sqrt().clamp(min=SMALLEST))
        elif self.kind == "per_example":
            self.rms.copy_(rms)
        else:
            self.scale.copy_(anchor.std() / rows.std().clamp(min=SMALLEST))
            self.shift.copy_(anchor.mean() - rows.mean() * self.scale)


def per_text_rms(rows: Tensor, present: Tensor) -> Tensor:
    """f32 [B,1,1], RMS over the rows of each text that stand for a latent."""
    share = present.to(rows.dtype)
    energy = (rows.square().mean(-1, keepdim=True) * share).sum(1, keepdim=True)
    return (energy / share.sum(1, keepdim=True).clamp(min=1)).sqrt()
