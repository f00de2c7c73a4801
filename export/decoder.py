"""The decoder graph: S new positions a row in, the next token and its embedding out, cache in place.

One graph for prefill and decode, for every family of ``families``; the families differ by switches only.
In: a ``DecoderConfig`` and the layout of the weight file. Out: an ONNX model. Reads no weights.

    x [B,S,H] -> layers -> the last true position of each row [B,H] -> norm -> head -> logits [B,V]
                  |                                                                  argmax -> next_token [B]
           past -> TensorScatter -> present                              its table row -> next_embeds [B,1,H]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from ..engines.specs import decoder_spec
from ..engines.tensors import Dim
from .attention import attention, attention_function
from .external import Layout
from .families import DecoderConfig
from .graph import ELEMENT_TYPES, Graph
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
    config: DecoderConfig, layout: Layout, dtype: str = "float32", capacity: Dim = "C"
) -> onnx.ModelProto:
    """The decoder of one LLM.

    Args:
        config: its numbers.
        layout: its weights under the names of ``weights.sources``, and the tables of ``rope_tables``.
        dtype: of weights, activations and cache; embeddings and logits cross the border as float32.
        capacity: cache slots a row; TensorRT wants a number here, ONNX Runtime takes any at run time.

    requires: layout holds every name. ensures: the graph's inputs and outputs are ``decoder_spec``.
    """
    b = _Builder(Graph("decoder", layout), config, dtype)
    x = b.g.op("Cast", "inputs_embeds", out=HIDDEN.format(0), to=ELEMENT_TYPES[dtype])
    for i in range(config.num_layers):
        x = b.layer(i, x)
    b.head(x)
    return b.g.model(decoder_spec(config, dtype, capacity), [attention_function()])


@dataclass(frozen=True)
class _Builder:
    """Parts of one decoder. Every method adds nodes and returns the name of its result."""

    g: Graph
    c: DecoderConfig
    dtype: str

    def layer(self, i: int, x: str) -> str:
        at, four = f"layer.{i}.", self.c.switches.four_norms
        out = self.attend(i, self.norm(x, f"{at}attention_norm"))
        x = self.g.op("Add", x, self.norm(out, f"{at}attention_out_norm") if four else out)
        out = self.mlp(at, self.norm(x, f"{at}mlp_norm"))
        out = self.norm(out, f"{at}mlp_out_norm") if four else out
        return self.g.op("Add", x, out, out=HIDDEN.format(i + 1))

    def norm(self, x: str, weight: str) -> str:
        return self.g.op("RMSNormalization", x, self.g.weight(weight), axis=-1, epsilon=self.c.eps)

    def project(self, x: str, weight: str, bias: str = "") -> str:
        y = self.g.op("MatMul", x, self.g.weight(weight))
        return self.g.op("Add", y, self.g.weight(bias)) if bias else y

    def attend(self, i: int, x: str) -> str:
        """Attention over the cache, which gains the new keys and values; x and result [B,S,H]."""
        at, g = f"layer.{i}.", self.g
        q, k = (self.rotate(i, self.heads(i, x, n)) for n in "qk")
        keys = g.op("TensorScatter", f"past_k.{i}", k, "write_indices", out=f"present_k.{i}", axis=-2)
        v = self.heads(i, x, "v")
        values = g.op("TensorScatter", f"past_v.{i}", v, "write_indices", out=f"present_v.{i}", axis=-2)
        mixed = attention(g, q, (keys, values), self.c.attention_scale, ELEMENT_TYPES[self.dtype])
        rows = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        width = self.c.num_heads * self.c.head_dim
        flat = g.op("Reshape", rows, g.constant("shape.rows", np.array([0, 0, width], np.int64)))
        return self.project(flat, f"{at}o")

    def heads(self, i: int, x: str, n: str) -> str:
        """Projection ``n`` (q, k or v) as [B,heads,S,D], normalised where the family does."""
        at, g, s = f"layer.{i}.", self.g, self.c.switches
        count = self.c.num_heads if n == "q" else self.c.num_kv_heads
        y = self.project(x, f"{at}{n}", f"{at}{n}_bias" if s.qkv_bias else "")
        shape = g.constant(f"shape.heads.{count}", np.array([0, 0, count, self.c.head_dim], np.int64))
        y = g.op("Reshape", y, shape)
        if s.qk_norm and n != "v":
            y = self.norm(y, f"{at}{n}_norm")
        return g.op("Transpose", y, perm=[0, 2, 1, 3])

    def rotate(self, i: int, x: str) -> str:
        """Rotary embedding of [B,heads,S,D] at ``position_ids``."""
        at = f"rope.{self.c.layer_rope[i]}."
        cos, sin = self.g.weight(f"{at}cos"), self.g.weight(f"{at}sin")
        return self.g.op("RotaryEmbedding", x, cos, sin, "position_ids")

    def mlp(self, at: str, x: str) -> str:
        """Gated MLP. silu is written Sigmoid * x: no engine has a kernel for the newer single operator."""
        g = self.g
        gate, up = self.project(x, f"{at}gate"), self.project(x, f"{at}up")
        if self.c.switches.activation == "silu":
            gated = g.op("Mul", gate, g.op("Sigmoid", gate))
        else:
            gated = g.op("Gelu", gate, approximate="tanh")
        return self.project(g.op("Mul", gated, up), f"{at}down")

    def head(self, x: str) -> None:
        """Only the last true position of each row reaches the head: a fifth of prefill is saved."""
        g = self.g
        index = g.op("Unsqueeze", "last_index", g.constant("axis.1", np.array([1], np.int64)))
        last = g.op("GatherND", x, index, batch_dims=1)
        last = self.norm(last, FINAL_NORM)
        table = g.weight(EMBEDDING)
        scores = g.op("Gemm", last, table if self.c.tied else g.weight(HEAD), transB=1)
        g.op("Cast", scores, out="logits", to=TensorProto.FLOAT)
        g.op("ArgMax", "logits", out="next_token", axis=-1, keepdims=0)
        row = g.op("Gather", table, "next_token")
        row = g.op("Cast", scaled(g, row, self.c, self.dtype), to=TensorProto.FLOAT)
        g.op("Unsqueeze", row, g.constant("axis.1", np.array([1], np.int64)), out="next_embeds")


def scaled(g: Graph, x: str, config: DecoderConfig, dtype: str) -> str:
    """Table rows as the LLM's embedding module returns them; the factor is rounded to the weights' dtype."""
    if config.embed_scale == 1.0:
        return x
    factor = g.op("Cast", g.constant("embed_scale", np.array(config.embed_scale, np.float32)), to=ELEMENT_TYPES[dtype])
    return g.op("Mul", x, factor)
