"""The attention node that two kinds of engine read from one file.

The node is ``trt::TRT_Attention``. TensorRT's parser knows that name and makes its own attention layer with
the attributes below; ONNX Runtime does not, and expands the model-local function of the same name, whose
body is the standard Attention. Both then compute the same thing:

    query i of row b sees cache slot j when j <= i + (kv_lengths[b] - S)

that is, causal with the last query aligned to the last valid slot.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph import OPSET, Graph

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


def attention(g: Graph, q: str, cache: tuple[str, str], scale: float, dtype: int) -> str:
    """Attention of S queries over a cache, valid up to the graph input ``kv_lengths`` int32 [B].

    Args:
        g: graph to add to.
        q: [B,Hq,S,D], rotated, not scaled.
        cache: keys and values [B,Hkv,C,D], with the new slots written.
        scale: factor on queries. It is applied here, to queries only and in float32, because engines that
            scale inside attention also scale the whole key cache, at every step.
        dtype: ONNX element type of q, k and v.

    Returns:
        name of [B,Hq,S,D].
    """
    wide = g.op("Cast", q, to=TensorProto.FLOAT)
    scaled = g.op("Mul", wide, g.constant("attention_scale", np.array(scale, np.float32)))
    narrow = g.op("Cast", scaled, to=dtype)
    # Absent inputs: mask, query lengths.
    return g.op(NAME, narrow, *cache, "", "", "kv_lengths", domain=DOMAIN, causal_kind=CAUSAL)


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
