"""Attention over the cache, in the flavour that a backend reads. The only nodes in which flavours differ.

All three compute the same thing over a cache [B,Hkv,C,D] of the same layout:

    query i of row b sees cache slot j when j <= i + (kv_lengths[b] - S)

that is, causal with the last query aligned to the last valid slot.

``dual``: TensorScatter writes the cache, then node ``trt::TRT_Attention``. TensorRT's parser knows that name and
makes its own attention layer with the attributes below; ONNX Runtime does not, and expands the model-local
function of the same name, whose body is the standard Attention.

``mask``: TensorScatter, then standard Attention with a mask bool [B,1,S,C] that is made once a graph. For
TensorRT 10.15, which has no lengths, and for ONNX Runtime's TensorRT provider.

``gqa``: ONNX Runtime's own GroupQueryAttention, which writes the cache itself, where ``kv_lengths`` says;
``write_indices`` stays an input that nothing reads. For its CUDA provider. On a cache that is not empty ONNX
Runtime refuses it more than one position a row unless the batch is one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..core.errors import ModelError
from ..engines.tensors import Dim
from .families import DecoderConfig
from .graph import CONTRIB, OPSET, Graph

Flavour = Literal["dual", "mask", "gqa"]
FLAVOURS: Final[tuple[Flavour, ...]] = ("dual", "mask", "gqa")

GQA_STEP: Final = 8
"""Head sizes that ONNX Runtime's node takes are multiples of it."""

DOMAIN: Final = "trt"
NAME: Final = "TRT_Attention"
CAUSAL: Final = "lower_right"

DEFAULTS: Final[dict[str, str | int]] = {
    "causal_kind": CAUSAL,
    "query_form": "padded_bhnd",
    "kv_form": "padded_bhnd",
    "TRT_normalization_op": "softmax",
    "TRT_decomposable": 0,
}
"""Every attribute has a default: readers of functions refuse a call that leaves one without a value."""


@dataclass(frozen=True)
class CachedAttention:
    """Attention of one decoder.

    Args:
        g: graph to add to; its inputs are those of ``decoder_spec``.
        config: sizes and scale.
        flavour: which nodes.
        dtype: ONNX element type of queries, keys, values and cache.
        capacity: C; a number makes the mask's slots a constant.
    """

    g: Graph
    config: DecoderConfig
    flavour: Flavour
    dtype: int
    capacity: Dim

    def __post_init__(self) -> None:
        if self.flavour == "gqa" and self.config.head_dim % GQA_STEP:
            raise ModelError(
                3203,
                f"head size {self.config.head_dim} does not go with the flavour gqa",
                expected=f"ONNX Runtime's GroupQueryAttention takes multiples of {GQA_STEP}",
                fix="export the flavour dual or mask",
            )

    @property
    def flat(self) -> bool:
        """Queries, keys and values come as [B,S,heads*D] instead of [B,heads,S,D]."""
        return self.flavour == "gqa"

    def __call__(self, i: int, q: str, k: str, v: str) -> str:
        """Layer ``i``: write ``k`` and ``v`` to the cache, attend with ``q``; all rotated, nothing scaled.

        Returns:
            name of [B,S,Hq*D].
        """
        if self.flavour == "gqa":
            return self._group_query(i, q, k, v)
        g = self.g
        keys = g.op("TensorScatter", f"past_k.{i}", k, "write_indices", out=f"present_k.{i}", axis=-2)
        values = g.op("TensorScatter", f"past_v.{i}", v, "write_indices", out=f"present_v.{i}", axis=-2)
        q = self._scaled(q)
        if self.flavour == "mask":
            mixed = g.op("Attention", q, keys, values, self._mask(), scale=1.0)
        else:
            # Absent inputs: mask, query lengths.
            mixed = g.op(NAME, q, keys, values, "", "", "kv_lengths", domain=DOMAIN, causal_kind=CAUSAL)
        rows = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        width = self.config.num_heads * self.config.head_dim
        return g.op("Reshape", rows, g.constant("shape.rows", np.array([0, 0, width], np.int64)))

    def _scaled(self, q: str) -> str:
        """Queries times the scale, in float32: engines that scale in attention scale the whole key cache too."""
        wide = self.g.op("Cast", q, to=TensorProto.FLOAT)
        scale = self.g.constant("attention_scale", np.array(self.config.attention_scale, np.float32))
        return self.g.op("Cast", self.g.op("Mul", wide, scale), to=self.dtype)

    def _mask(self) -> str:
        """Bool [B,1,S,C]: slot c is seen by the query at position p when c <= p and c < kv_lengths."""
        g = self.g
        inner = g.constant("axes.mask", np.array([1, 2], np.int64))
        lengths = g.once("mask.lengths", "Cast", "kv_lengths", to=TensorProto.INT64)
        lengths = g.once("mask.lengths.b11", "Unsqueeze", lengths, inner)
        valid = g.once("mask.valid", "Less", self._slots(), lengths)
        last = g.constant("axis.last", np.array([-1], np.int64))
        positions = g.once("mask.positions", "Unsqueeze", "position_ids", last)
        seen = g.once("mask.causal", "LessOrEqual", self._slots(), positions)
        both = g.once("mask.both", "And", seen, valid)
        return g.once("mask", "Unsqueeze", both, g.constant("axis.1", np.array([1], np.int64)))

    def _slots(self) -> str:
        """0..C-1."""
        g = self.g
        if isinstance(self.capacity, int):
            return g.constant("mask.slots", np.arange(self.capacity, dtype=np.int64))
        size = g.once("mask.shape", "Shape", "past_k.0", start=2, end=3)
        size = g.once("mask.capacity", "Squeeze", size)
        zero, one = (g.constant(f"int.{n}", np.array(n, np.int64)) for n in (0, 1))
        return g.once("mask.slots", "Range", zero, size, one)

    def _group_query(self, i: int, q: str, k: str, v: str) -> str:
        """One contrib node with three outputs; it scales scores, not keys, so the scale is its attribute."""
        g, c = self.g, self.config
        one = g.constant("int32.one", np.array(1, np.int32))
        last = g.once("gqa.last", "Sub", "kv_lengths", one)
        total = g.once("gqa.total", "ReduceMax", "kv_lengths", keepdims=0)
        given = [q, k, v, f"past_k.{i}", f"past_v.{i}", last, total]
        names = [f"attention.{i}", f"present_k.{i}", f"present_v.{i}"]
        node = helper.make_node(
            "GroupQueryAttention",
            given,
            names,
            name=f"{names[0]}/GroupQueryAttention",
            domain=CONTRIB,
            num_heads=c.num_heads,
            kv_num_heads=c.num_kv_heads,
            scale=c.attention_scale,
        )
        g.nodes.append(node)
        return names[0]


def functions(flavour: Flavour) -> list[onnx.FunctionProto]:
    """Model-local functions that a flavour's graph needs."""
    return [attention_function()] if flavour == "dual" else []


def attention_function() -> onnx.FunctionProto:
    """The body that ONNX Runtime runs: standard Attention, causal, with key and value lengths."""
    nodes = [
        helper.make_node("Cast", ["kv_lengths"], ["lengths"], to=TensorProto.INT64),
        helper.make_node("Attention", ["Q", "K", "V", "", "", "", "lengths"], ["Y"], is_causal=1, scale=1.0),
    ]
    return helper.make_function(
        DOMAIN,
        NAME,
        ["Q", "K", "V", "mask", "query_lengths", "kv_lengths"],
        ["Y"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        attribute_protos=[helper.make_attribute(k, v) for k, v in DEFAULTS.items()],
    )
