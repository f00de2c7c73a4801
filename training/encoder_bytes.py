"""``ByteLevelEncoder``: UTF-8 bytes -> latents Z, for any language, without a tokenizer.

Bytes are embedded, brought to a quarter of their number by two strided residual convolutions, read by a bidirectional
transformer, and pooled into spans as in ``EncoderFromEmbedLayer`` (see ``pooling``). It learns to make the latents that
another encoder makes of the same spans of the text (``latent`` losses), and is then trained on through the LLMs.
Downsampling bytes in front of a transformer as in CANINE (arXiv 2103.06874).

As in its teacher, a latent is the sum of two paths, scaled to unit RMS:

* *lookup path*: the strings of a ``Lexicon`` (see there) in the span, each with its key, weighted by salience (inverse
  document frequency plus a learned score). At the start this alone is alive;
* *context path*: the span's mean state reads all states by attention. Its output projection starts at zero.

Without a lexicon (size 0) there is the context path alone: 600 steps of distillation then brought it to a cosine of 0.5
to its teacher's latents, because most of what it had to learn were the names of words.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from ..core.salient import STEPS
from .binding import Cut, Naming, group, piece_slots
from .fsq import Quantiser
from .keeping import Keep, as_salience
from .lesson import STRIDE, states_of
from .lexicon import Lexicon, Strings
from .pooling import SpanAttention, inside_mask, salient_spans, span_means, span_weights, to_latents
from .token_codes import TokenQuantiser

BYTES: Final = 256
HEAD: Final = 44
"""Width of an attention head at the default width of 352; narrower encoders have one head less wide."""


FAR: Final = float(1 << 20)
"""Beyond all that strings are compared by."""
RARER: Final = 64.0
"""More than any inverse document frequency: one level of salience weighs more than any rarity."""


class Halve(nn.Module):
    """Residual convolution of stride 2: f32 [B,S,a], lengths -> f32 [B,ceil(S/2),b]; padding stays zero."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, out, kernel_size=3, stride=2, padding=1)
        self.mix = nn.Linear(out, out, bias=False)
        self.norm = LlamaRMSNorm(out)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``lengths`` int64 [B]: true positions of each row after this."""
        near = self.near(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = near + self.mix(F.gelu(self.norm(near)))
        inside = torch.arange(out.shape[1], device=out.device)[None, :] < lengths[:, None]
        # What a convolution sees beyond a text's end must not depend on the batch it is in.
        return out * inside[..., None]


class ByteLevelEncoder(nn.Module):
    """Bytes to latents; about 10.7M parameters at the default width 352 with 6 layers.

    Args:
        d_z: width of a latent.
        width: of the transformer, a multiple of 4.
        layers: of the transformer.
        words: strings of the lexicon; 0: none.
        salience: weight of the inverse document frequency inside a span at the start.
        span_type: how texts are cut, ``equal`` or, with a lexicon, ``salient``: a state has the inverse document
            frequency of the rarest string that begins in it (see ``pooling``), or ``learned``: at any byte, where
            strings begin that the head ``keep`` likes best (see ``keeping``), which follows a teacher's.
        places: strings of its lexicon that a latent names; see ``binding``.

    Shapes: input_ids int64 [B,S] bytes, lengths int64 [B] bytes, slots int64 [M] -> latents f32 [B,M,d_z]. A text has
    at most one latent for each started group of 4 bytes; slots beyond ``min(M, ceil(length / 4))`` are zero.
    ``counts``, ``low_precision`` and ``quantiser`` are as in ``EncoderFromEmbedLayer``; ``grain`` are the bytes of a
    unit that texts are cut into, 4 (a state) or 1.
    """

    def __init__(
        self,
        d_z: int,
        width: int,
        layers: int,
        words: int = 0,
        salience: float = 2.0,
        span_type: str = "equal",
        places: int = 1,
    ) -> None:
        super().__init__()
        self.span_type, self.places = span_type, places
        # Of short tokens, digits above all, several begin in one state: a cut between states can name one of them.
        self.grain = 1 if span_type == "learned" and words else STRIDE
        self.low_precision = False
        self.quantiser: Quantiser | TokenQuantiser | None = None
        heads = max(1, width // HEAD)
        config = LlamaConfig(
            vocab_size=BYTES,
            hidden_size=width,
            intermediate_size=8 * width // 3 // 4 * 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=width // heads // 2 * 2,
            max_position_embeddings=65536,
        )
        config._attn_implementation = "sdpa"
        self.config = config
        self.bytes = nn.Embedding(BYTES, width // 2)
        self.first = Halve(width // 2, width)
        self.second = Halve(width, width)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(layers))
        self.rotary = LlamaRotaryEmbedding(config)
        self.norm = LlamaRMSNorm(width)
        self.pool = SpanAttention(width, heads)
        self.out = nn.Linear(width, d_z, bias=False)
        self.lexicon = Lexicon(d_z, words) if words else None
        if self.lexicon is not None:
            self.sharpness = nn.Parameter(torch.tensor(salience))
            self.score = nn.Linear(width, STRIDE, bias=False)
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.out.weight)
            self.naming = Naming(places)
            self.word = nn.Linear(STRIDE * d_z, width, bias=False) if span_type == "learned" else None
            if self.word is not None:
                nn.init.zeros_(self.word.weight)
        self.keep = Keep(width, STRIDE) if span_type == "learned" and words else None

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        slots: Tensor,
        counts: Tensor | None = None,
        cut: Cut | None = None,
    ) -> Tensor:
        strings = None if self.lexicon is None else self.lexicon(input_ids, lengths)
        states = self._states(input_ids, lengths, strings)
        salience = self._salience(states, strings, lengths, states.shape[1])
        if cut is None:
            cut = self._cut(salience, lengths, slots, counts, states.shape[1], self.places)
        spans = cut.spans if self.grain == STRIDE else _states_in(cut.spans, states.shape[1])
        mean = span_means(spans, states)
        z: Tensor = self.out(mean + self.pool(mean, states, inside_mask(states_of(lengths), states.shape[1])))
        if self.lexicon is not None and strings is not None and salience is not None:
            z = z + self._lookup_path(self.lexicon, strings, states, cut, salience)
        return to_latents(z, cut.spans)

    def cut(
        self, input_ids: Tensor, lengths: Tensor, slots: Tensor, counts: Tensor | None = None, places: int = 0
    ) -> Cut:
        """Which of a text's units, ceil(S/4) states or S bytes, each latent speaks of; ``places``: and how many strings
        it names, where not the usual."""
        strings = None if self.lexicon is None else self.lexicon(input_ids, lengths)
        states = None if self.keep is None else self._states(input_ids, lengths, strings)
        size = (input_ids.shape[1] + STRIDE - 1) // STRIDE
        salience = self._salience(states, strings, lengths, size)
        return self._cut(salience, lengths, slots, counts, size, places or self.places)

    def odds(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Log-odds f32 [B,S] that what begins at each byte is wanted; where ``span_type`` is learned."""
        assert self.keep is not None
        assert self.lexicon is not None
        states = self._states(input_ids, lengths, self.lexicon(input_ids, lengths))
        return self._odds(self.keep, states, lengths, input_ids.shape[1])

    def _odds(self, keep: Keep, states: Tensor, lengths: Tensor, size: int) -> Tensor:
        out: Tensor = keep(states, inside_mask(states_of(lengths), states.shape[1])[:, 0, 0])
        return out[:, :size]

    def _salience(self, states: Tensor | None, strings: Strings | None, lengths: Tensor, size: int) -> Tensor | None:
        """f32 [B,ceil(S/4)] or, with a head, [B,S], by which texts are cut; None without a lexicon."""
        if self.lexicon is None or strings is None:
            return None
        rarity = self.lexicon.salience(*strings)
        if self.keep is None or states is None:
            return _in_states(rarity[..., None], size).amax(2)[..., 0]
        # Where nothing of the lexicon begins, nothing can be named; what every text holds need not be.
        return as_salience(self._odds(self.keep, states, lengths, rarity.shape[1])).detach() * (rarity > 0)

    def _cut(
        self, salience: Tensor | None, lengths: Tensor, slots: Tensor, counts: Tensor | None, size: int, places: int
    ) -> Cut:
        units = states_of(lengths)
        if self.grain == 1:
            # Cut anywhere, a text has no more latents than states.
            asked = torch.full_like(lengths, 0) + slots.shape[0] if counts is None else counts
            counts, units = torch.minimum(asked, units), lengths
        pieces, own = piece_slots(slots, places), None if counts is None else counts * places
        if self.span_type == "equal" or salience is None:
            found = span_weights(units, pieces, size, own)
        else:
            found = salient_spans(salience, units, pieces, own)
        return group(found, units, slots, counts, places)

    def _lookup_path(self, lexicon: Lexicon, strings: Strings, states: Tensor, cut: Cut, salience: Tensor) -> Tensor:
        entry, begin, found = strings
        rarity = F.embedding(entry, lexicon.idf[:, None])[..., 0]
        pieces, unit = cut.pieces, begin if self.grain == 1 else begin // STRIDE
        inside = pieces.transpose(1, 2).gather(1, unit[..., None].expand(-1, -1, pieces.shape[1]))
        inside = (inside & found[..., None]).transpose(1, 2)
        if self.keep is None:
            # One score for each byte of a state; a string has that of its last byte, and is of the span it begins in.
            score = self.score(states).flatten(1)[:, : entry.shape[1]]
            weight = torch.where(inside, (self.sharpness * rarity + score)[:, None, :], -1e4).softmax(-1) * inside
        else:
            # The string that a piece was cut for: the one that is wanted most, of equal ones the rarest.
            worth = ((salience * STEPS).floor().gather(1, unit) * RARER + rarity)[:, None, :]
            # A piece without one names its neighbour's, the last string that begins before its end, else the next.
            place = torch.arange(entry.shape[1], device=entry.device)
            end = (pieces * (torch.arange(pieces.shape[2], device=pieces.device) + 1)).amax(-1, keepdim=True)
            near = torch.where(unit[:, None, :] < end, place, -1 - place).to(worth.dtype)
            here = inside.any(-1, keepdim=True)
            asked = inside | (found[:, None, :] & (end > 0) & ~here)
            best = torch.where(asked, torch.where(here, worth, near), -FAR).argmax(-1, keepdim=True)
            weight = ((place == best) & asked).to(lexicon.keys.dtype)
        out: Tensor = self.naming(F.embedding(entry, lexicon.keys), weight, cut)
        return out

    def _states(self, input_ids: Tensor, lengths: Tensor, strings: Strings | None) -> Tensor:
        """f32 [B,ceil(S/4),width]."""
        if not self.low_precision:
            return self._contextual(input_ids, lengths, strings)
        with torch.autocast(input_ids.device.type, torch.bfloat16):
            return self._contextual(input_ids, lengths, strings).float()

    def _contextual(self, input_ids: Tensor, lengths: Tensor, strings: Strings | None) -> Tensor:
        real = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :] < lengths[:, None]
        x = self.bytes(input_ids) * real[..., None]
        half = (lengths + 1) // 2
        x = self.second(self.first(x, half), (half + 1) // 2)
        if self.keep is not None and self.lexicon is not None and self.word is not None and strings is not None:
            entry, _, found = strings
            keys = F.embedding(entry, self.lexicon.keys) * found[..., None]
            # The strings that end at each byte of a state; as loud as a latent.
            four = _in_states(keys, x.shape[1]).view(-1, x.shape[1], STRIDE * keys.shape[-1])
            x = x + self.word(four * math.sqrt(keys.shape[-1]))
        positions = torch.arange(x.shape[1], device=x.device)[None, :]
        rotary = self.rotary(x, positions)
        mask = inside_mask(states_of(lengths), x.shape[1]).expand(-1, -1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        out: Tensor = self.norm(x)
        return out


def _in_states(x: Tensor, size: int) -> Tensor:
    """f32 [B,S,D] of bytes as [B,size,4,D], padded with 0; ``size``: states, ceil(S/4)."""
    return F.pad(x, (0, 0, 0, size * STRIDE - x.shape[1])).view(-1, size, STRIDE, x.shape[2])


def _states_in(spans: Tensor, size: int) -> Tensor:
    """Spans of bytes, bool [B,M,S], as the states of which they have a byte, bool [B,M,size]."""
    found = _in_states(spans.transpose(1, 2).float(), size).amax(2) > 0
    return found.transpose(1, 2)
