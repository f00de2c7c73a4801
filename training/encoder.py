"""Encoders: token ids -> latents Z.

``EncoderFromEmbedLayer`` copies an LLM's embedding table (frozen) and first layers, drops the causal mask and
pools T contextual states into M latents, one per contiguous span of the text (see ``pooling``).

Each latent is the sum of two paths, scaled to unit RMS:

* *lookup path*: the span's tokens in a closed-form projection of the embedding table, weighted by salience
  (inverse document frequency plus a learned score). At the start this alone is alive, and a lookup adapter reads
  the most telling token of each span from it;
* *context path*: the span's mean state reads all states by attention and adds what no single token holds.
  Its output projection starts at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .binding import Cut, Naming, group, piece_slots
from .fsq import Quantiser
from .keeping import Keep, as_salience
from .pooling import SpanAttention, inside_mask, salient_spans, span_means, span_weights, to_latents, unit
from .token_codes import TokenQuantiser


class EncoderFromEmbedLayer(nn.Module):
    """First layers of an LLM as a bidirectional text encoder with span pooling.

    Args:
        config: the LLM's transformers config; ``num_hidden_layers`` is the number of layers kept here.
        d_z: width of a latent.
        salience: weight of the inverse document frequency inside a span at the start.
        span_type: how texts are cut, ``equal``, ``salient`` (by inverse document frequency) or ``learned`` (by what the
            head ``keep`` says of each token); see ``pooling`` and ``keeping``.
        places: tokens that a latent names; see ``binding``.

    ``low_precision`` runs the copied layers under bf16 autocast (training only); everything behind them stays fp32,
    because a lookup by cosine at temperature 0.05 does not bear bf16 rounding. ``quantiser`` belongs to the encoder's
    weights and fingerprint, because codes can be read with it alone; the latents returned here are not quantised.

    Shapes: input_ids int64 [B,S], lengths int64 [B], slots int64 [M] -> latents f32 [B,M,d_z]. Slots beyond
    ``min(M, length)`` are zero; ``counts`` int64 [B] gives each text an M of its own, at most the number of slots.
    ``cut`` cuts the texts in another way.
    """

    def __init__(
        self, config: LlamaConfig, d_z: int, salience: float, span_type: str = "equal", places: int = 1
    ) -> None:
        super().__init__()
        self.span_type = span_type
        width = config.hidden_size
        self.low_precision = False
        self.quantiser: Quantiser | TokenQuantiser | None = None
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
        self.places = places
        self.naming = Naming(places)
        self.keep = Keep(width) if span_type == "learned" else None
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        slots: Tensor,
        counts: Tensor | None = None,
        cut: Cut | None = None,
    ) -> Tensor:
        table: Tensor = self.get_buffer("embedding")
        embedded = F.embedding(input_ids, table).float()
        inside = inside_mask(lengths, input_ids.shape[1])
        states = self._states(embedded, inside)
        rarity: Tensor = self.get_buffer("idf")[input_ids]
        # What is kept is a choice, which has no gradient; the head learns from questions.
        kept = rarity if self.keep is None else as_salience(self.keep(states, inside[:, 0, 0])).detach()
        if cut is None:
            cut = self._cut(kept, lengths, slots, counts, self.places)
        looked_up = self._lookup_path(embedded, states, cut, rarity, kept)
        return to_latents(looked_up + self._context_path(states, cut.spans, inside), cut.spans)

    def cut(
        self, input_ids: Tensor, lengths: Tensor, slots: Tensor, counts: Tensor | None = None, places: int = 0
    ) -> Cut:
        """Which tokens of its text each latent speaks of; ``places``: and how many it names, where not the usual."""
        kept: Tensor = self.get_buffer("idf")[input_ids]
        if self.keep is not None:
            kept = as_salience(self.odds(input_ids, lengths))
        return self._cut(kept, lengths, slots, counts, places or self.places)

    def odds(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds f32 [B,S] that each token is wanted (see ``keeping``); of an encoder with ``span_type`` learned."""
        assert self.keep is not None
        inside = inside_mask(lengths, input_ids.shape[1])
        states = self._states(F.embedding(input_ids, self.get_buffer("embedding")).float(), inside)
        out: Tensor = self.keep(states, inside[:, 0, 0])
        return out

    def _cut(self, kept: Tensor, lengths: Tensor, slots: Tensor, counts: Tensor | None, places: int) -> Cut:
        pieces, own = piece_slots(slots, places), None if counts is None else counts * places
        if self.span_type == "equal":
            found = span_weights(lengths, pieces, kept.shape[1], own)
        else:
            found = salient_spans(kept, lengths, pieces, own)
        return group(found, lengths, slots, counts, places)

    def _states(self, embedded: Tensor, inside: Tensor) -> Tensor:
        if not self.low_precision:
            return self._contextual(embedded, inside)
        with torch.autocast(embedded.device.type, torch.bfloat16):
            return self._contextual(embedded, inside).float()

    def _contextual(self, x: Tensor, inside: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None, :]
        rotary = self.rotary(x, positions)
        # Spelled out for every query: ONNX Runtime's Attention does not broadcast a mask over queries.
        mask = inside.expand(-1, -1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        out: Tensor = self.norm(x)
        return out

    def _lookup_path(self, embedded: Tensor, states: Tensor, cut: Cut, idf: Tensor, kept: Tensor) -> Tensor:
        keys = unit(self.projection(embedded - self.get_buffer("mean")))
        salience = self.sharpness * idf + self.score(states).squeeze(-1)
        if self.keep is None:
            weight = torch.where(cut.pieces, salience[:, None, :], -1e4).softmax(-1) * cut.pieces
        else:
            # The one token that a piece was cut for; a mixture with its neighbours would be the key of none.
            best = torch.where(cut.pieces, kept[:, None, :], -1.0).argmax(-1, keepdim=True)
            place = torch.arange(kept.shape[1], device=kept.device)
            weight = ((place == best) & cut.pieces).to(keys.dtype)
        out: Tensor = self.naming(keys, weight, cut)
        return out

    def _context_path(self, states: Tensor, spans: Tensor, inside: Tensor) -> Tensor:
        mean = span_means(spans, states)
        out: Tensor = self.out(mean + self.pool(mean, states, inside))
        return out
