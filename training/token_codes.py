"""A quantiser that no gradient trains: a latent is written as a token of a vocabulary and what is left of it, 32 bits.

A latent that a lookup adapter reads lies near the key of one token, so that token's number says most of it. What is
left has a form that latents share; three codebooks, each made of what the one before left (residual vector
quantisation, Juang and Gray 1982), hold it:

    i = argmax z K^T,   r = z - a K_i,   j1 = argmin |r - C1_j|,   j2 = argmin |r - C1_j1 - C2_j|,   ...
    z' = a K_i + C1_j1 + C2_j2 + C3_j3, brought to unit RMS

    word = i + 2^15 j1 + 2^21 j2 + 2^27 j3, cut into 16 digits of base 4: on the wire profile 1 of the codec fsq, whose
    codes mean what the encoder's quantiser says

Where a latent names two tokens (binding.py), the second takes the place of two codebooks and most of the third, and
``s`` binds its key to that place:

    i = argmax z K^T,   j = argmax s^-1(z - a K_i) K^T,   k = argmin |z - a K_i - b s(K_j) - C_k|
    word = i + 2^15 j + 2^30 k

``K`` are the unit keys of tokens by the encoder's own projection, ``a`` the mean of ``z K_i``; the codebooks come from
sample latents by k-means. Rounding has no gradient: it passes straight through, as in finite scalar quantisation
(fsq.py).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .binding import bind, unbind
from .pooling import unit

PROFILE: Final = 1
DIGITS: Final = 16
BASE: Final = 4
ENTRIES: Final = 1 << 15
BOOKS: Final = {1: (64, 64, 32), 2: (4,)}
"""Tokens named -> entries of the codebooks, one stage after the other: with 15 bits a token they make 32."""
BLOCK: Final = 4096
"""Entries compared at once: all scores of a batch would be hundreds of megabytes."""
ROUNDS: Final = 16
"""Of k-means for each codebook."""


class TokenQuantiser(nn.Module):
    """The bottleneck: f32 [B,M,d_z] -> codes int64 [B,M,16] -> f32 [B,M,d_z], unit RMS as the encoder's latents.

    Args:
        d_z: width of a latent.
        entries: tokens of the table, at most 32,768.
        places: tokens that a latent names, one of ``BOOKS``.

    Buffers, saved with the encoder: ``table`` f32 [N,d_z], unit rows; ``share`` f32 [], the ``a`` above; ``shares`` f32
    [P-1], its ``b``; ``books`` f32 [160 or 4,d_z], one codebook after the other.
    """

    table: Tensor
    share: Tensor
    shares: Tensor
    books: Tensor
    powers: Tensor

    def __init__(self, d_z: int, entries: int, places: int = 1) -> None:
        super().__init__()
        self.places, self.sizes = places, BOOKS[places]
        self.dims, self.levels = DIGITS, BASE
        self.register_buffer("table", torch.zeros(min(entries, ENTRIES), d_z))
        self.register_buffer("share", torch.ones(()))
        if places > 1:
            self.register_buffer("shares", torch.ones(places - 1))
        self.register_buffer("books", torch.zeros(sum(self.sizes), d_z))
        self.register_buffer("powers", BASE ** torch.arange(DIGITS), persistent=False)

    def forward(self, z: Tensor, rounded: Tensor) -> Tensor:
        """Latents as a reader gets them: coded where ``rounded`` bool [B], untouched elsewhere; empty slots stay 0."""
        with torch.no_grad():
            coded = self.latents(self.codes(z)) * z.any(-1, keepdim=True)
        return torch.where(rounded[:, None, None], z + (coded - z).detach(), z)

    def codes(self, z: Tensor) -> Tensor:
        """What travels, int64 [B,M,16], each 0..3."""
        tokens, rest = self.named(z)
        word, power = tokens[0], ENTRIES
        for token in tokens[1:]:
            word, power = word + power * token, power * ENTRIES
        for book in self.books.split(self.sizes):
            # The nearest entry: |r - c|^2 without |r|^2, which is the same for all.
            near = (rest @ book.T - 0.5 * book.square().sum(-1)).argmax(-1)
            rest = rest - F.embedding(near, book)
            word = word + power * near
            power *= len(book)
        return word.unsqueeze(-1) // self.powers % BASE

    def latents(self, codes: Tensor) -> Tensor:
        """What the reader makes of it, f32 [B,M,d_z]; numbers beyond the table are its last entry."""
        word = (codes * self.powers).sum(-1)
        z = torch.zeros((), device=word.device)
        for place in range(self.places):
            z = z + self._key((word % ENTRIES).clamp(max=len(self.table) - 1), place)
            word = word // ENTRIES
        for book in self.books.split(self.sizes):
            z = z + F.embedding(word % len(book), book)
            word = word // len(book)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)

    def named(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tokens int64 [B,M] that latents name, and what is left for the codebooks: f32 [B,M,d_z] in units of a
        unit latent."""
        rest, tokens = unit(z), []
        for place in range(self.places):
            tokens.append(self.pursue(unbind(rest, place)))
            rest = rest - self._key(tokens[-1], place)
        return tokens, rest

    def _key(self, token: Tensor, place: int) -> Tensor:
        share = self.shares[place - 1] if place else self.share
        return share * bind(F.embedding(token, self.table), place)

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
    rest = unit(z)
    for place in range(quantiser.places):
        token = torch.cat([quantiser.pursue(unbind(part, place)[None])[0] for part in rest.split(1024)])
        key = bind(F.embedding(token, quantiser.table), place)
        share = (rest * key).sum(-1).mean()
        (quantiser.shares[place - 1] if place else quantiser.share).copy_(share)
        rest = rest - share * key
    for book in quantiser.books.split(quantiser.sizes):
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
