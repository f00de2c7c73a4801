"""Spans: which part of a text each latent speaks of, and how a span reads the whole. Shared by all encoders.

A text of T states (tokens, groups of four bytes, or bytes) is cut into contiguous spans, one a latent, in the order of
the text (as in ARC-Encoder, arXiv 2510.20535), in one of two ways:

* ``equal``: spans of near-equal length;
* ``salient``: the n rarest of its states each end a span. Names and numbers get a latent of their own, and the words
  between them share one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.salient import GOLDEN, LEVELS, PLACES, STEPS


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def span_weights(lengths: Tensor, slots: Tensor, size: int, counts: Tensor | None = None) -> Tensor:
    """Which token belongs to which latent.

    Args:
        lengths: int64 [B], tokens of each text.
        slots: int64 [M], ``arange(M)``; its length is the number of latents asked for.
        size: padded length S.
        counts: int64 [B], latents of each text where they differ; None: M.

    Returns:
        bool [B, M, S]: text b is cut into ``min(counts[b], lengths[b])`` contiguous, near-equal, non-empty spans;
        slots beyond that own no token.
    """
    token = torch.arange(size, device=lengths.device)
    asked = torch.full_like(lengths, 0) + slots.shape[0] if counts is None else counts
    count = torch.minimum(asked, lengths)
    owner = token[None, :] * count[:, None] // lengths.clamp(min=1)[:, None]
    inside = token[None, :] < lengths[:, None]
    return (owner[:, None, :] == slots[None, :, None]) & inside[:, None, :]


def salient_spans(salience: Tensor, lengths: Tensor, slots: Tensor, counts: Tensor | None = None) -> Tensor:
    """Spans that end at the most salient states.

    Args:
        salience: f32 [B,S], at least 0: how rare what stands in a state is.
        lengths, slots, counts: as of ``span_weights``; texts of at most ``PLACES`` states.

    Returns:
        As ``span_weights``. The last state always ends a span, and of two states of one level that with the smaller
        ``place * GOLDEN % PLACES`` does: where no state is more salient than another, spans are nearly equal.
    """
    place = torch.arange(salience.shape[1], device=salience.device)[None, :]
    inside = place < lengths[:, None]
    asked = torch.full_like(lengths, 0) + slots.shape[0] if counts is None else counts
    count = torch.minimum(asked, lengths)
    level = (salience * STEPS).floor().clamp(0, LEVELS - 1)
    level = torch.where(place == lengths[:, None] - 1, float(LEVELS), level)
    # A whole number below 2^24, so exact in float32, and no two states of a text have the same.
    rank = level * PLACES + (PLACES - 1 - place * GOLDEN % PLACES)
    rank = torch.where(inside, rank, -1.0)
    least = rank.sort(-1, descending=True).values.gather(1, (count - 1).clamp(min=0)[:, None])
    ends = (inside & (rank >= least)).long()
    owner = ends.cumsum(-1) - ends
    return (owner[:, None, :] == slots[None, :, None]) & inside[:, None, :]


def inside_mask(lengths: Tensor, size: int) -> Tensor:
    """bool [B,1,1,S], true for real tokens; all true for a text without any, so that no softmax is over nothing."""
    inside = (torch.arange(size, device=lengths.device)[None, :] < lengths[:, None])[:, None, None, :]
    return inside | (lengths == 0)[:, None, None, None]


def span_means(spans: Tensor, states: Tensor) -> Tensor:
    """Mean state of each span: bool [B,M,S], f[B,S,H] -> f[B,M,H]; 0 for an empty span."""
    share = spans.to(states.dtype)
    mean: Tensor = (share @ states) / share.sum(-1, keepdim=True).clamp(min=1)
    return mean


def to_latents(z: Tensor, spans: Tensor) -> Tensor:
    """Latents [B,M,d_z] scaled to an RMS of 1; slots without a span become 0."""
    z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)
    return z * spans.any(-1, keepdim=True)


class SpanAttention(nn.Module):
    """One query per span reads all states of the text: f[B,M,H], f[B,S,H] -> f[B,M,H]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, states: Tensor, inside: Tensor) -> Tensor:
        """``inside``: bool [B,1,1,S], true for real tokens."""
        q, k, v = (
            self._split(layer(x)) for layer, x in ((self.query, query), (self.key, states), (self.value, states))
        )
        mask = inside.expand(-1, -1, query.shape[1], -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
