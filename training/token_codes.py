"""A quantiser that needs no training: a latent is written as two tokens of a vocabulary and a weight, 32 bits.

A latent that a lookup adapter reads lies near the key of one token, so that token's number says most of it; a second
token says what is left. This is matching pursuit (Mallat and Zhang 1993) with two atoms, over the keys of the encoder's
own vocabulary:

    i = argmax z K^T,   r = z - (z K_i) K_i,   j = argmax r K^T,   w = (r K_j) / (z K_i)   to the nearest of four
    z' = K_i + w K_j, brought to unit RMS

    word = i + 2^15 j + 2^30 w, cut into 16 digits of base 4: on the wire profile 1 of the codec fsq, whose codes mean
    what the encoder's quantiser says

Rounding has no gradient: it passes straight through, as in finite scalar quantisation (fsq.py).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import unit

PROFILE: Final = 1
DIGITS: Final = 16
BASE: Final = 4
ENTRIES: Final = 1 << 15
WEIGHTS: Final = 4
BLOCK: Final = 4096
"""Entries compared at once: all scores of a batch would be hundreds of megabytes."""


class TokenQuantiser(nn.Module):
    """The bottleneck: f32 [B,M,d_z] -> codes int64 [B,M,16] -> f32 [B,M,d_z], unit RMS as the encoder's latents.

    Args:
        d_z: width of a latent.
        entries: tokens of the table, at most 32,768.

    Buffers, saved with the encoder: ``table`` f32 [N,d_z], unit rows; ``weights`` f32 [4], ascending.
    """

    table: Tensor
    weights: Tensor
    powers: Tensor

    def __init__(self, d_z: int, entries: int) -> None:
        super().__init__()
        self.dims, self.levels = DIGITS, BASE
        self.register_buffer("table", torch.zeros(min(entries, ENTRIES), d_z))
        self.register_buffer("weights", torch.zeros(WEIGHTS))
        self.register_buffer("powers", BASE ** torch.arange(DIGITS), persistent=False)

    def forward(self, z: Tensor, rounded: Tensor) -> Tensor:
        """Latents as a reader gets them: coded where ``rounded`` bool [B], untouched elsewhere; empty slots stay 0."""
        with torch.no_grad():
            coded = self.latents(self.codes(z)) * z.any(-1, keepdim=True)
        return torch.where(rounded[:, None, None], z + (coded - z).detach(), z)

    def codes(self, z: Tensor) -> Tensor:
        """What travels, int64 [B,M,16], each 0..3."""
        at, other, ratio = self._split(z)
        nearest = (ratio.unsqueeze(-1) - self.weights).abs().argmin(-1)
        word = at + ENTRIES * other + ENTRIES**2 * nearest
        return word.unsqueeze(-1) // self.powers % BASE

    def latents(self, codes: Tensor) -> Tensor:
        """What the reader makes of it, f32 [B,M,d_z]; numbers beyond the table are its last entry."""
        word = (codes * self.powers).sum(-1)
        last = len(self.table) - 1
        first, other = word % ENTRIES, word // ENTRIES % ENTRIES
        weight = F.embedding(word // ENTRIES**2, self.weights.unsqueeze(-1))
        z = F.embedding(first.clamp(max=last), self.table) + weight * F.embedding(other.clamp(max=last), self.table)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)

    def ratios(self, z: Tensor) -> Tensor:
        """Weight of the second token against the first, before it is rounded: f32 [B,M]."""
        return self._split(z)[2]

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of both tokens, int64 [B,M] each, and ``ratios``."""
        first, at, best = self._pursue(unit(z))
        _, other, left = self._pursue(unit(z) - best.unsqueeze(-1) * first)
        return at, other, left / best.clamp(min=1e-6)

    def _pursue(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entry nearest in direction to f32 [B,M,d_z]: itself, its number int64 [B,M], its share f32 [B,M]."""
        found = (x @ self.table[:BLOCK].T).max(-1)
        best, at = found.values, found.indices
        for start in range(BLOCK, len(self.table), BLOCK):
            found = (x @ self.table[start : start + BLOCK].T).max(-1)
            better = found.values > best
            at = torch.where(better, found.indices + start, at)
            best = torch.maximum(best, found.values)
        return F.embedding(at, self.table), at, best


@torch.no_grad()
def start_token_quantiser(quantiser: TokenQuantiser, keys: Tensor, z: Tensor) -> None:
    """Take unit keys f32 [N,d_z] as the table, and four weights from sample latents f32 [K,d_z].

    The weights are the middles of four equal shares of what the samples need.
    """
    quantiser.table.copy_(keys)
    ratios = torch.cat([quantiser.ratios(part[None])[0] for part in z.split(1024)])
    quantiser.weights.copy_(torch.quantile(ratios, torch.tensor([0.125, 0.375, 0.625, 0.875])))
