"""Layers that read the latents: the part ``cross`` of a bundle, and the nodes in front of a decoder's layers.

    cross.onnx     latents [B,M,d_z] -> cross_k, cross_v, cross_bias     once for a prompt
    decoder.onnx   x -> x + |x| (softmax(q cross_k + cross_bias) cross_v * gate) O     in front of a chosen layer

Both read the checkpoint's own file of the feature ``latent_adapters``, as it is: the formula stands in
``training/features/latent_adapters.py``, and is computed in float32 whatever the decoder's precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from ..core.errors import ModelError
from ..engines.specs import cross_spec
from ..engines.tensors import GraphSpec
from .external import Layout, external_tensor, find, read_layout
from .graph import Graph, save

KIND: Final = "latent_adapters"
EPS: Final = 1e-6
"""Of training: added to mean squares."""
EMPTY: Final = -1e30
"""Added to the score of a slot without a latent. Finite, so that a row of empty slots has scores that are equal."""


@dataclass(frozen=True)
class CrossWeights:
    """The feature's weights in a bundle.

    Attributes:
        layout: of its file: ``query`` [N,H,R], ``key`` and ``value`` [N,d_z,R], ``out`` [N,R,H], ``gate`` [N,R].
        layers: numbers of the N layers in front of which latents are read.
        heads: of the R dimensions.
    """

    layout: Layout
    layers: tuple[int, ...]
    heads: int

    @property
    def spec(self) -> GraphSpec:
        """Of the part ``cross``."""
        count, d_z, rank = find("key", self.layout).shape
        return cross_spec(d_z, count, self.heads, rank // self.heads)

    @property
    def rank(self) -> int:
        """R."""
        return find("gate", self.layout).shape[1]


def cross_weights(path: Path, facts: Mapping[str, Any], d_z: int, hidden: int, depth: int) -> CrossWeights:
    """The weights in a bundle's file, checked against the encoder and the LLM.

    Args:
        path: file in the bundle's folder.
        facts: what the checkpoint says of them: ``layers``, ``heads``.
        d_z: of the encoder.
        hidden, depth: H and the number of layers of the LLM.

    Raises:
        ModelError: 3223 they do not fit each other, the encoder or the LLM.
        BundleError: 4001 not a safetensors file; 4008 a tensor is missing.
    """
    layout, layers, heads = read_layout(path), tuple(facts.get("layers", ())), facts.get("heads")
    n, rank = len(layers), find("gate", layout).shape[-1]
    want = {"query": (n, hidden, rank), "key": (n, d_z, rank), "value": (n, d_z, rank), "out": (n, rank, hidden)}
    for name, shape in {**want, "gate": (n, rank)}.items():
        if find(name, layout).shape != shape:
            raise _misfit(path, f"{name} {list(shape)}", str(list(find(name, layout).shape)))
    if not all(isinstance(i, int) and 0 <= i < depth for i in layers):
        raise _misfit(path, f"layers from 0 to {depth - 1}", str(list(layers)))
    if not isinstance(heads, int) or heads < 1 or rank % heads:
        raise _misfit(path, f"heads that divide {rank}", str(heads))
    return CrossWeights(layout, layers, heads)


def write_cross(weights: CrossWeights, folder: Path) -> None:
    """``cross.onnx`` of a bundle under construction; the weights lie there already."""
    save(build_cross(weights), folder / "cross.onnx")


def build_cross(w: CrossWeights) -> onnx.ModelProto:
    """The graph of ``w.spec``."""
    g = Graph("cross")
    z = _unit(g, "latents")[0]
    rows = g.op("Unsqueeze", z, g.constant("axis.1", np.array([1], np.int64)))
    size = w.rank // w.heads
    shape = g.constant("shape.heads", np.array([0, 0, 0, w.heads, size], np.int64))
    keys, values = (g.op("Reshape", g.op("MatMul", rows, _weight(g, w, n)), shape) for n in ("key", "value"))
    keys = g.op("Mul", keys, g.constant("scale", np.array(size**-0.5, np.float32)))
    g.op("Transpose", keys, out="cross_k", perm=[0, 1, 3, 4, 2])
    g.op("Transpose", values, out="cross_v", perm=[0, 1, 3, 2, 4])
    last = g.constant("axis.last", np.array([-1], np.int64))
    largest = g.op("ReduceMax", g.op("Abs", "latents"), last, keepdims=0)
    zero, empty = (g.constant(n, np.array(v, np.float32)) for n, v in (("zero", 0.0), ("empty", EMPTY)))
    bias = g.op("Where", g.op("Greater", largest, zero), zero, empty)
    g.op("Unsqueeze", bias, g.constant("axes.scores", np.array([1, 2], np.int64)), out="cross_bias")
    return g.model(w.spec)


def read_latents(g: Graph, w: CrossWeights | None, layer: int, x: str, dtype: int) -> str:
    """What a layer of the decoder gets: ``x`` [B,S,H] itself, or with what its positions read of the latents.

    Args:
        g: the decoder, with the outputs of ``cross`` among its inputs.
        w: None for a decoder without them.
        layer: number of the layer.
        x: name of the residual stream.
        dtype: ONNX element type of ``x``.
    """
    if w is None or layer not in w.layers:
        return x
    j = w.layers.index(layer)
    at = g.constant(f"cross.{j}", np.array(j, np.int64))
    wide = g.op("Cast", x, to=TensorProto.FLOAT)
    n, size = _unit(g, wide)
    # One matrix of a stack: engines take it apart once, when they load the graph.
    query, out, gate = (g.op("Gather", _weight(g, w, name), at, axis=0) for name in ("query", "out", "gate"))
    heads = g.constant("cross.heads", np.array([0, 0, w.heads, w.rank // w.heads], np.int64))
    q = g.op("Transpose", g.op("Reshape", g.op("MatMul", n, query), heads), perm=[0, 2, 1, 3])
    scores = g.op("Add", g.op("MatMul", q, g.op("Gather", "cross_k", at, axis=1)), "cross_bias")
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.op("Gather", "cross_v", at, axis=1))
    flat = g.constant("cross.flat", np.array([0, 0, w.rank], np.int64))
    mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), flat)
    added = g.op("Mul", size, g.op("MatMul", g.op("Mul", mixed, gate), out))
    return g.op("Cast", g.op("Add", wide, added), to=dtype)


def _unit(g: Graph, x: str) -> tuple[str, str]:
    """``x`` float32 [...,N] by its root mean square, and that [...,1]."""
    last = g.constant("axis.last", np.array([-1], np.int64))
    mean = g.op("ReduceMean", g.op("Mul", x, x), last, keepdims=1)
    size = g.op("Sqrt", g.op("Add", mean, g.constant("cross.eps", np.array(EPS, np.float32))))
    return g.op("Div", x, size), size


def _weight(g: Graph, w: CrossWeights, name: str) -> str:
    """A whole stack in float32; published checkpoints hold halves."""
    own = f"{KIND}.{name}"
    if own not in g.initializers:
        g.initializers[own] = external_tensor(own, w.layout, name)
    return g.once(f"{own}.wide", "Cast", own, to=TensorProto.FLOAT)


def _misfit(path: Path, expected: str, came: str) -> ModelError:
    return ModelError(
        3223, f"feature {KIND} does not fit", where=str(path), expected=f"expected {expected}, got {came}"
    )
