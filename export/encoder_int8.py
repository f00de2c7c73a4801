"""The encoder's matrix products in int8: for bundles whose decoder is int8 too.

    x [B,S,K] times W, as traced, fp16 widened when it is loaded      x, each row quantised alone, times W in int8

What reads whole sentences is rewritten: the copied layers and the pooling attention. What decides which token a latent
names stays float32: the projection of the table, the learned score, the last projection. Weights are replaced in
``encoder.safetensors``, so that nothing lies there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from .external import find, point, write_weights
from .graph import CONTRIB, Graph, drop_unused, save
from .modules import read_model
from .precision import PRECISIONS
from .projection import Operand, Projection
from .quantize import convert

Array = npt.NDArray[Any]

PARTS: Final = ("layers.", "pool.")
"""Where names of weights begin whose products are rewritten; the rest of the encoder decides by small differences."""
FORM: Final = PRECISIONS["int8"]
FILE: Final = "encoder.safetensors"


def narrow(folder: Path) -> int:
    """Rewrite ``encoder.onnx`` and its weights in a folder under construction; returns how many matrices are int8 now.

    requires: no other graph points at ``encoder.safetensors`` yet.

    Raises:
        BundleError: 4001 unreadable.
    """
    from safetensors.numpy import load_file

    path = folder / "encoder.onnx"
    model = read_model(path)
    products = _products(model.graph)
    if not products:
        return 0
    weights = load_file(str(folder / FILE))
    for weight in set(products.values()):
        # Stored [out,in], as torch's Linear; the graph multiplies with [in,out].
        weights |= convert(weight, weights.pop(weight).astype(np.float32).T, "matrix", FORM)
    layout = write_weights(folder / FILE, weights)
    g = Graph("encoder", layout, "int8.")
    rows = _Rows(g)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in products:
            nodes.append(node)
            continue
        g.nodes.clear()
        weight = products[node.output[0]]
        rows.product(node.input[0], weight, find(f"{weight}.int8", layout).shape, node.output[0])
        nodes += g.nodes
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(g.initializers.values())
    drop_unused(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and _location(tensor) == FILE:
            point(tensor, layout, tensor.name)
    model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    save(model, path)
    return len(set(products.values()))


def _products(graph: onnx.GraphProto) -> Mapping[str, str]:
    """Output of each product that is rewritten -> its weight: MatMul(x, Transpose(Cast(weight)))."""
    made = {output: node for node in graph.node for output in node.output}
    weights = {t.name for t in graph.initializer if t.name.startswith(PARTS) and len(t.dims) == 2}
    found = {}
    for node in graph.node:
        at, kinds = node, []
        while at.op_type in ("MatMul", "Transpose", "Cast"):
            kinds.append(at.op_type)
            source = at.input[-1]
            if source in weights and kinds == ["MatMul", "Transpose", "Cast"]:
                found[node.output[0]] = source
            if source not in made:
                break
            at = made[source]
    return found


class _Rows:
    """Products of one graph; rows that several matrices read are quantised once."""

    def __init__(self, g: Graph) -> None:
        self._g, self._projection = g, Projection(g, FORM)
        self._operands: dict[str, Operand] = {}

    def product(self, x: str, weight: str, shape: tuple[int, ...], out: str) -> None:
        """Nodes for ``x`` [B,n,K] times ``weight`` of this shape [K,N], as ``out`` [B,n,N]."""
        g, (width, count) = self._g, shape
        if x not in self._operands:
            self._operands[x] = self._projection.operand(x, width, weight, lines=x)
        y = self._projection.product(self._operands[x], weight)
        ends = g.constant(f"int8.{count}", np.array([count], np.int64))
        sizes = g.once(f"{x}.sizes", "Shape", x, start=0, end=2)
        g.op("Reshape", y, g.once(f"{x}.{count}", "Concat", sizes, ends, axis=0), out=out)


def _location(tensor: onnx.TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")
