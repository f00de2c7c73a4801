"""Encoders: token ids -> latents Z.

``EncoderFromEmbedLayer`` copies an LLM's embedding table (frozen) and first layers, drops the causal mask and
pools T contextual states into M latents, one per contiguous span of the text (spans as in ARC-Encoder,
arXiv 2510.20535: pooled in place, so that latent k always speaks of the k-th part of the text).

Each latent is the sum of two paths, scaled to unit RMS:

* *lookup path*: the span's tokens in a closed-form projection of the embedding table, weighted by salience
  (inverse document frequency plus a learned score). At the start this alone is alive, and a lookup adapter reads
  the most telling token of each span from it;
* *context path*: the span's mean state reads all states by attention and adds what no single token holds.
  Its output projection starts at zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .adapter import unit


def span_weights(lengths: Tensor, slots: Tensor, size: int) -> Tensor:
    """Which token belongs to which latent.

    Args:
        lengths: int64 [B], tokens of each text.
        slots: int64 [M], ``arange(M)``; its length is the number of latents asked for.
        size: padded length S.

    Returns:
        bool [B, M, S]: the text is cut into ``min(M, length)`` contiguous, near-equal, non-empty spans; slots
        beyond that own no token.
    """
    token = torch.arange(size, device=lengths.device)
    count = torch.minimum(torch.full_like(lengths, 0) + slots.shape[0], lengths)
    owner = token[None, :] * count[:, None] // lengths.clamp(min=1)[:, None]
    inside = token[None, :] < lengths[:, None]
    return (owner[:, None, :] == slots[None, :, None]) & inside[:, None, :]


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


class EncoderFromEmbedLayer(nn.Module):
    """First layers of an LLM as a bidirectional text encoder with span pooling.

    Args:
        config: the LLM's transformers config; ``num_hidden_layers`` is the number of layers kept here.
        d_z: width of a latent.
        salience: weight of the inverse document frequency inside a span at the start.

    ``low_precision`` runs the copied layers under bf16 autocast (training only); everything behind them stays fp32,
    because a lookup by cosine at temperature 0.05 does not bear bf16 rounding.

    Shapes: input_ids int64 [B,S], lengths int64 [B], slots int64 [M] -> latents f32 [B,M,d_z]. Slots beyond
    ``min(M, length)`` are zero.
    """

    def __init__(self, config: LlamaConfig, d_z: int, salience: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.low_precision = False
        config._attn_implementation = "sdpa"
        # fp16 on purpose: the table is frozen, and what is exported is what was trained with.
        self.register_buffer("embedding", torch.zeros(config.vocab_size, width, dtype=torch.float16), persistent=False)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("idf", torch.zeros(config.vocab_size))
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.rotary = LlamaRotaryEmbedding(config)
        self.norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.projection = nn.Linear(width, d_z, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(salience))
        self.score = nn.Linear(width, 1, bias=False)
        self.pool = SpanAttention(width, config.num_attention_heads)
        self.out = nn.Linear(width, d_z, bias=False)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, input_ids: Tensor, lengths: Tensor, slots: Tensor) -> Tensor:
        table: Tensor = self.get_buffer("embedding")
        embedded = F.embedding(input_ids, table).float()
        spans = span_weights(lengths, slots, input_ids.shape[1])
        inside = (torch.arange(input_ids.shape[1], device=lengths.device)[None, :] < lengths[:, None])[:, None, None, :]
        # A row of padding only would divide by zero inside attention; its slots are cleared below.
        inside = inside | (lengths == 0)[:, None, None, None]
        if self.low_precision:
            with torch.autocast(embedded.device.type, torch.bfloat16):
                states = self._contextual(embedded, inside)
        else:
            states = self._contextual(embedded, inside)
        states = states.float()
        looked_up = self._lookup_path(embedded, states, spans, self.get_buffer("idf")[input_ids])
        context = self._context_path(states, spans, inside)
        z = looked_up + context
        z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)
        return z * spans.any(-1, keepdim=True)

    def _contextual(self, x: Tensor, inside: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None, :]
        rotary = self.rotary(x, positions)
        # Spelled out for every query: ONNX Runtime's Attention does not broadcast a mask over queries.
        mask = inside.expand(-1, -1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        out: Tensor = self.norm(x)
        return out

    def _lookup_path(self, embedded: Tensor, states: Tensor, spans: Tensor, idf: Tensor) -> Tensor:
        keys = unit(self.projection(embedded - self.get_buffer("mean")))
        salience = self.sharpness * idf + self.score(states).squeeze(-1)
        weight = torch.where(spans, salience[:, None, :], -1e4).softmax(-1)
        # A unit vector has an RMS of d_z^-1/2; scaled to 1, so that one step of the context path is a small change.
        out: Tensor = weight @ keys * math.sqrt(keys.shape[-1])
        return out

    def _context_path(self, states: Tensor, spans: Tensor, inside: Tensor) -> Tensor:
        share = spans.to(states.dtype)
        mean = (share @ states) / share.sum(-1, keepdim=True).clamp(min=1)
        out: Tensor = self.out(mean + self.pool(mean, states, inside))
        return out
