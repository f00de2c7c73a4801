"""The decoder graph: S new positions a row in, the next token and its embedding out, cache in place.

One graph for prefill and decode, for every family of ``families``; the families differ by switches only.
In: a ``DecoderConfig`` and the layout of the weight file. Out: an ONNX model. Reads no weights.

    x [B,S,H] -> layers -> the last true position of each row [B,H] -> norm -> head -> logits [B,V]
                  |                                                                  argmax -> next_token [B]
           past -> TensorScatter -> present                              its table row -> next_embeds [B,1,H]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from ..engines.specs import decoder_spec
from ..engines.tensors import Dim
from .attention import CachedAttention, Flavour, functions
from .cross import CrossWeights, read_latents
from .external import Layout
from .families import DecoderConfig
from .graph import ELEMENT_TYPES, Graph
from .precision import Precision
from .projection import Operand, Projection
from .rope import tables
from .weights import EMBEDDING, FINAL_NORM, HEAD

HIDDEN: Final = "hidden.{}"
"""Name of the residual stream after layer i (and before layer 0, at index 0): parity reads these."""


def rope_tables(config: DecoderConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Cosine and sine tables by graph name, one pair for each distinct rotation."""
    found = {}
    for i, rope in enumerate(config.ropes):
        found[f"rope.{i}.cos"], found[f"rope.{i}.sin"] = tables(rope, config.max_positions)
    return found


def build_decoder(
    config: DecoderConfig,
    layout: Layout,
    precision: Precision,
    flavour: Flavour = "dual",
    capacity: Dim = "C",
    scales: Mapping[str, float] | None = None,
    cross: CrossWeights | None = None,
) -> onnx.ModelProto:
    """The decoder of one LLM.

    Args:
        config: its numbers.
        layout: its weights: ``quantize.stored`` of ``weights.sources`` and of ``rope_tables``.
        precision: dtype of activations and cache, and form of the matrices; embeddings and logits cross the border
            as float32.
        flavour: of the attention.
        capacity: cache slots a row; TensorRT wants a number here, ONNX Runtime takes any at run time.
        scales: fp8 only, as ``fp8.calibrate`` finds them.
        cross: of layers that read latents.

    requires: layout holds every name. ensures: the graph's inputs and outputs are ``decoder_spec``.
    """
    g = Graph("decoder", layout)
    dtype = ELEMENT_TYPES[precision.dtype]
    products = Projection(g, precision, scales or {})
    b = _Builder(g, config, products, CachedAttention(g, config, flavour, dtype, capacity), cross)
    x = g.op("Cast", "inputs_embeds", out=HIDDEN.format(0), to=dtype)
    for i in range(config.num_layers):
        x = b.layer(i, x)
    b.head(x)
    read = cross.spec.outputs if cross else ()
    return g.model(decoder_spec(config, precision.dtype, capacity, read), functions(flavour))


@dataclass(frozen=True)
class _Builder:
    """Parts of one decoder. Every method adds nodes and returns the name of its result."""

    g: Graph
    c: DecoderConfig
    p: Projection
    attention: CachedAttention
    cross: CrossWeights | None

    def layer(self, i: int, x: str) -> str:
        at, four = f"layer.{i}.", self.c.switches.four_norms
        x = read_latents(self.g, self.cross, i, x, self.attention.dtype)
        out = self.attend(i, self.norm(x, f"{at}attention_norm"))
        x = self.g.op("Add", x, self.norm(out, f"{at}attention_out_norm") if four else out)
        out = self.mlp(at, self.norm(x, f"{at}mlp_norm"))
        out = self.norm(out, f"{at}mlp_out_norm") if four else out
        return self.g.op("Add", x, out, out=HIDDEN.format(i + 1))

    def norm(self, x: str, weight: str) -> str:
        return self.g.op("RMSNormalization", x, self.g.weight(weight), axis=-1, epsilon=self.c.eps)

    def attend(self, i: int, x: str) -> str:
        """Attention over the cache, which gains the new keys and values; x and result [B,S,H]."""
        at, c = f"layer.{i}.", self.c
        rows = self.p.operand(x, c.hidden_size, f"{at}q")
        q, k = (self.rotate(i, self.heads(i, rows, n), n) for n in "qk")
        mixed = self.attention(i, q, k, self.heads(i, rows, "v"))
        out = self.p.product(self.p.operand(mixed, c.num_heads * c.head_dim, f"{at}o"), f"{at}o")
        return self.p.stream(out, c.hidden_size)

    def heads(self, i: int, rows: Operand, n: str) -> str:
        """Projection ``n`` (q, k or v), normalised where the family does, in the layout of the attention."""
        at, s, d = f"layer.{i}.", self.c.switches, self.c.head_dim
        count = self.count(n)
        y = self.p.product(rows, f"{at}{n}", f"{at}{n}_bias" if s.qkv_bias else "")
        normed = s.qk_norm and n != "v"
        if self.attention.flat and not normed:
            return self.p.stream(y, count * d)
        y = self.p.reshape(y, count, d)
        if normed:
            y = self.norm(y, f"{at}{n}_norm")
        if self.attention.flat:
            width = self.g.constant(f"shape.flat.{count * d}", np.array([0, 0, count * d], np.int64))
            return self.g.op("Reshape", y, width)
        return self.g.op("Transpose", y, perm=[0, 2, 1, 3])

    def count(self, n: str) -> int:
        return self.c.num_heads if n == "q" else self.c.num_kv_heads

    def rotate(self, i: int, x: str, n: str) -> str:
        """Rotary embedding of q or k at ``position_ids``."""
        at = f"rope.{self.c.layer_rope[i]}."
        cos, sin = self.g.weight(f"{at}cos"), self.g.weight(f"{at}sin")
        if self.attention.flat:
            return self.g.op("RotaryEmbedding", x, cos, sin, "position_ids", num_heads=self.count(n))
        return self.g.op("RotaryEmbedding", x, cos, sin, "position_ids")

    def mlp(self, at: str, x: str) -> str:
        """Gated MLP. silu is written Sigmoid * x: no engine has a kernel for the newer single operator."""
        g, p, c = self.g, self.p, self.c
        rows = p.operand(x, c.hidden_size, f"{at}gate")
        gate, up = p.product(rows, f"{at}gate"), p.raw_product(rows, f"{at}up")
        if c.switches.activation == "silu":
            gated = g.op("Mul", gate, g.op("Sigmoid", gate))
        else:
            gated = g.op("Gelu", gate, approximate="tanh")
        out = p.operand(g.op("Mul", gated, up), c.intermediate_size, f"{at}down", raw=rows)
        return p.stream(p.product(out, f"{at}down"), c.hidden_size)

    def head(self, x: str) -> None:
        """Only the last true position of each row reaches the head: a fifth of prefill is saved."""
        g = self.g
        index = g.op("Unsqueeze", "last_index", g.constant("axis.1", np.array([1], np.int64)))
        last = g.op("GatherND", x, index, batch_dims=1)
        last = self.norm(last, FINAL_NORM)
        scores = self.p.head(last, self.c.hidden_size, EMBEDDING if self.c.tied else HEAD, HEAD)
        g.op("Cast", scores, out="logits", to=TensorProto.FLOAT)
        g.op("ArgMax", "logits", out="next_token", axis=-1, keepdims=0)
        row = embedded(g, "next_token", self.c, self.p.precision)
        g.op("Unsqueeze", row, g.constant("axis.1", np.array([1], np.int64)), out="next_embeds")


def embedded(g: Graph, ids: str, config: DecoderConfig, precision: Precision) -> str:
    """Table rows float32 as the LLM's embedding module returns them, which rounds its factor and product to its dtype.

    Rows are gathered first and widened then: an engine would widen a constant table as a whole, in memory.
    The product is made in float32 and rounded, as in ``tables``: ONNX Runtime's CPU has none in bfloat16, and drops
    the rounding of one in float16.
    """
    row = g.op("Cast", g.op("Gather", g.weight(EMBEDDING), ids), to=TensorProto.FLOAT)
    if config.embed_scale == 1.0:
        return row
    row = g.op("Mul", row, g.constant("embed_scale", rounded(config.embed_scale, precision.dtype)))
    return g.op("Cast", g.op("Cast", row, to=ELEMENT_TYPES[precision.dtype]), to=TensorProto.FLOAT)


def rounded(factor: float, dtype: str) -> npt.NDArray[np.float32]:
    """A number as ``dtype`` holds it."""
    import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16

    return np.array(factor, np.float32).astype(dtype).astype(np.float32)
