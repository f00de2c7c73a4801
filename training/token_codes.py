"""A quantiser that no gradient trains: a latent is written as a token of a vocabulary and what is left of it, 32 bits.

A latent that a lookup adapter reads lies near the key of one token, so that token's number says most of it. What is
left has a form that latents share; three codebooks, each made of what the one before left (residual vector
quantisation, Juang and Gray 1982), hold it:

    i = argmax z K^T,   r = z - a K_i,   j1 = argmin |r - C1_j|,   j2 = argmin |r - C1_j1 - C2_j|,   ...
    z' = a K_i + C1_j1 + C2_j2 + C3_j3, brought to unit RMS

    word = i + 2^15 j1 + 2^21 j2 + 2^27 j3, cut into 16 digits of base 4: on the wire profile 1 of the codec fsq, whose
    codes mean what the encoder's quantiser says

``K`` are the unit keys of tokens by the encoder's own projection, ``a`` the mean of ``z K_i``; the codebooks come from
sample latents by k-means. Rounding has no gradient: it passes straight through, as in finite scalar quantisation
(fsq.py).
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
BOOKS: Final = (64, 64, 32)
"""Entries of the codebooks, one stage after the other: with a token's 15 bits they make 32."""
BLOCK: Final = 4096
"""Entries compared at once: all scores of a batch would be hundreds of megabytes."""
ROUNDS: Final = 16
"""Of k-means for each codebook."""


class TokenQuantiser(nn.Module):
    """The bottleneck: f32 [B,M,d_z] -> codes int64 [B,M,16] -> f32 [B,M,d_z], unit RMS as the encoder's latents.

    Args:
        d_z: width of a latent.
        entries: tokens of the table, at most 32,768.

    Buffers, saved with the encoder: ``table`` f32 [N,d_z], unit rows; ``share`` f32 [], the ``a`` above; ``books`` f32
    [160,d_z], one codebook after the other.
    """

    table: Tensor
    share: Tensor
    books: Tensor
    powers: Tensor

    def __init__(self, d_z: int, entries: int) -> None:
        super().__init__()
        self.dims, self.levels = DIGITS, BASE
        self.register_buffer("table", torch.zeros(min(entries, ENTRIES), d_z))
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("books", torch.zeros(sum(BOOKS), d_z))
        self.register_buffer("powers", BASE ** torch.arange(DIGITS), persistent=False)

    def forward(self, z: Tensor, rounded: Tensor) -> Tensor:
        """Latents as a reader gets them: coded where ``rounded`` bool [B], untouched elsewhere; empty slots stay 0."""
        with torch.no_grad():
            coded = self.latents(self.codes(z)) * z.any(-1, keepdim=True)
        return torch.where(rounded[:, None, None], z + (coded - z).detach(), z)

    def codes(self, z: Tensor) -> Tensor:
        """What travels, int64 [B,M,16], each 0..3."""
        word = self.pursue(unit(z))
        rest, power = self.rest(z, word), ENTRIES
        for book in self.books.split(BOOKS):
            # The nearest entry: |r - c|^2 without |r|^2, which is the same for all.
            near = (rest @ book.T - 0.5 * book.square().sum(-1)).argmax(-1)
            rest = rest - F.embedding(near, book)
            word = word + power * near
            power *= len(book)
        return word.unsqueeze(-1) // self.powers % BASE

    def latents(self, codes: Tensor) -> Tensor:
        """What the reader makes of it, f32 [B,M,d_z]; numbers beyond the table are its last entry."""
        word = (codes * self.powers).sum(-1)
        z = self.share * F.embedding((word % ENTRIES).clamp(max=len(self.table) - 1), self.table)
        word = word // ENTRIES
        for book in self.books.split(BOOKS):
            z = z + F.embedding(word % len(book), book)
            word = word // len(book)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)

    def rest(self, z: Tensor, token: Tensor) -> Tensor:
        """What the codebooks are for: f32 [B,M,d_z] in units of a unit latent, less its token's share."""
        return unit(z) - self.share * F.embedding(token, self.table)

    def pursue(self, x: Tensor) -> Tensor:
        """Number int64 [B,M] of the entry nearest in direction to f32 [B,M,d_z]."""
        found = (x @ self.table[:BLOCK].T).max(-1)
        best, at = found.values, found.indices
        for start in range(BLOCK, len(self.table), BLOCK):
            found = (x @ self.table[start : start + BLOCK].T).max(-1)
            at = torch.where(found.values > best, found.indices + start, at)
            best = torch.maximum(best, found.values)
        return at


@torch.no_grad()
def start_token_quantiser(quantiser: TokenQuantiser, keys: Tensor, z: Tensor) -> None:
    """Take unit keys f32 [N,d_z] as the table, and codebooks from sample latents f32 [K,d_z]."""
    quantiser.table.copy_(keys)
    token = torch.cat([quantiser.pursue(unit(part)[None])[0] for part in z.split(1024)])
    quantiser.share.copy_((unit(z) * F.embedding(token, quantiser.table)).sum(-1).mean())
    rest = quantiser.rest(z, token)
    for book in quantiser.books.split(BOOKS):
        book.copy_(_means(rest, len(book)))
        rest = rest - F.embedding(torch.cdist(rest, book).argmin(-1), book)


def _means(x: Tensor, count: int) -> Tensor:
    """Centres f32 [count,d_z] of f32 [K,d_z] by k-means, from samples at equal distances; without any: zeros."""
    if not len(x):
        return x.new_zeros(count, x.shape[1])
    centres = x[torch.arange(count) * len(x) // count].clone()
    for _ in range(ROUNDS):
        near = torch.cdist(x, centres).argmin(-1)
        size = torch.bincount(near, minlength=count).to(x.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, near, x)
        centres = torch.where(size > 0, sums / size.clamp(min=1), centres)
    return centres
