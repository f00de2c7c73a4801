"""An adapter's search among the LLM's tokens, in int8 first: for bundles whose decoder is int8 too.

    unit vectors x keys [V,d_z] -> the best K        as traced: float32 products with every token of the vocabulary;
                                                     vectors [B,M,d_z], or [B,P,M,d_z] where a latent names P tokens

    the same in int8 -> the best WIDER * K -> those in float32 -> the best K

The search decides in float32 still, among candidates; a token is lost only if int8 ranks it below WIDER * K. Keys,
which the traced graph derives from the LLM's table whenever it is opened, are stored: ``lookup.safetensors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from ..core.errors import BundleError
from ..engines.ort_session import guarded, open_session
from .external import write_weights
from .graph import CONTRIB, Graph, drop_unused, save
from .modules import read_model
from .projection import INT8_TOP, SMALLEST, UINT8_ZERO
from .quantize import channel_scale

WIDER: Final = 2
APART: Final = 0.05
"""Largest relative difference (Frobenius norm) of rows from the search as traced, for latents that are keys."""
BLOCK: Final = 64
"""Tokens whose largest score is looked for first."""
FILE: Final = "lookup.safetensors"

F32 = npt.NDArray[np.float32]


def quicken(folder: Path, width: int) -> bool:
    """Rewrite ``adapter.onnx`` in a folder under construction; False: it has no such search, and stays as it is.

    Args:
        folder: with the adapter's graph and all weights that it reads.
        width: d_z.

    Raises:
        BundleError: 4001 the graph cannot be run; 4010 it finds other tokens than the one in float32.
    """
    path = folder / "adapter.onnx"
    model = read_model(path)
    search = _Search.find(model.graph)
    if search is None:
        return False
    nothing = np.zeros((1, 1, width), np.float32)
    keys, queries = _evaluated(model, (search.keys, search.queries), folder, nothing)
    some = keys[np.linspace(0, len(keys) - 1, 8).astype(int)].reshape(2, 4, width)
    rows = model.graph.output[0].name
    (wanted,) = _evaluated(model, (rows,), folder, some)
    scale = channel_scale(keys.T, INT8_TOP)
    narrow = np.rint(keys.T / scale).astype(np.int8, order="C")
    layout = write_weights(folder / FILE, {"keys": keys.astype(np.float16), "keys.int8": narrow, "keys.scale": scale})
    g = Graph("lookup", layout, "lookup.")
    search.rebuild(g, len(keys), queries.ndim - 1)
    at = list(model.graph.node).index(search.top)
    nodes = [*model.graph.node[:at], *g.nodes, *model.graph.node[at + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(g.initializers.values())
    drop_unused(model.graph)
    if all(o.domain != CONTRIB for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    (found,) = _evaluated(model, (rows,), folder, some)
    apart = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    if not apart <= APART:
        told = f"expected a relative difference of at most {APART:g}, got {apart:.2g}"
        raise BundleError(4010, "search in int8 gives other rows than in float32", where=path.name, expected=told)
    save(model, path)
    return True


class _Search:
    """The nodes of the search: queries times keys, and the best of each row."""

    def __init__(self, top: onnx.NodeProto, queries: str, keys: str, count: int) -> None:
        self.top, self.queries, self.keys, self.count = top, queries, keys, count

    @classmethod
    def find(cls, graph: onnx.GraphProto) -> _Search | None:
        """TopK of MatMul(queries, Transpose(keys)); None: the graph has none, or more than one."""
        made = {output: node for node in graph.node for output in node.output}
        tops = [node for node in graph.node if node.op_type == "TopK"]
        if len(tops) != 1:
            return None
        product = made.get(tops[0].input[0])
        turned = made.get(product.input[1]) if product is not None and product.op_type == "MatMul" else None
        count = _constant(graph, tops[0].input[1])
        if product is None or turned is None or turned.op_type != "Transpose" or count is None:
            return None
        return cls(tops[0], product.input[0], turned.input[0], int(count.reshape(-1)[0]))

    def rebuild(self, g: Graph, tokens: int, axes: int) -> None:
        """The same outputs from two rounds; ``tokens``: number of keys, ``axes``: of queries but the last."""
        last = g.constant("lookup.last", np.array([-1], np.int64))
        size = g.op("ReduceMax", g.op("Abs", self.queries), last, keepdims=1)
        size = g.op("Max", size, g.constant("lookup.smallest", np.array(SMALLEST, np.float32)))
        step = g.constant("lookup.step", np.array(1 / INT8_TOP, np.float32))
        zero = g.constant("lookup.zero", np.array(UINT8_ZERO, np.uint8))
        rows = g.op("QuantizeLinear", g.op("Div", self.queries, size), step, zero)
        stored = step, g.weight("keys.scale"), zero
        rough = g.op("MatMulIntegerToFloat", rows, g.weight("keys.int8"), *stored, domain=CONTRIB)
        wider = min(self.count * WIDER, tokens)
        candidates = self._candidates(g, rough, tokens, wider, axes)
        near = g.op("Cast", g.op("Gather", g.weight("keys"), candidates), to=onnx.TensorProto.FLOAT)
        scores = g.op("Squeeze", g.op("MatMul", near, g.op("Unsqueeze", self.queries, last)), last)
        _, at = self._best(g, scores, self.count, (self.top.output[0], "lookup.at"))
        g.op("GatherElements", candidates, at, out=self.top.output[1], axis=-1)

    def _candidates(self, g: Graph, rough: str, tokens: int, count: int, axes: int) -> str:
        """The best ``count`` of ``rough`` [...,V]. They lie in the best ``count`` blocks, so only those are sorted:
        the largest of a block is found much faster than a place in an order."""
        names = ("lookup.rough", "lookup.candidates")
        if tokens % BLOCK or tokens // BLOCK <= count:
            return self._best(g, rough, count, names)[1]
        last = g.constant("lookup.last", np.array([-1], np.int64))
        cut = g.constant("lookup.cut", np.array([0] * axes + [tokens // BLOCK, BLOCK], np.int64))
        joined = g.constant("lookup.joined", np.array([0] * axes + [count * BLOCK], np.int64))
        size = g.constant("lookup.block_size", np.array(BLOCK, np.int64))
        blocks = g.op("Reshape", rough, cut)
        tops = g.op("ReduceMax", blocks, last, keepdims=0)
        chosen = self._best(g, tops, count, ("lookup.tops", "lookup.blocks"))[1]
        near = g.op("GatherND", blocks, g.op("Unsqueeze", chosen, last), batch_dims=axes)
        at = self._best(g, g.op("Reshape", near, joined), count, (names[0], "lookup.within"))[1]
        block = g.op("GatherElements", chosen, g.op("Div", at, size), axis=-1)
        return g.op("Add", g.op("Mul", block, size), g.op("Mod", at, size), out=names[1])

    @staticmethod
    def _best(g: Graph, scores: str, count: int, names: tuple[str, str]) -> tuple[str, str]:
        most = g.constant(f"lookup.{count}", np.array([count], np.int64))
        g.nodes.append(onnx.helper.make_node("TopK", [scores, most], list(names), name=f"{names[1]}/TopK", axis=-1))
        return names


def _constant(graph: onnx.GraphProto, name: str) -> npt.NDArray[np.int64] | None:
    """A small constant of a graph, by the name of its node's output or its own."""
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            return onnx.numpy_helper.to_array(onnx.helper.get_node_attr_value(node, "value"))
    for tensor in graph.initializer:
        if tensor.name == name and tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
    return None


def _evaluated(model: onnx.ModelProto, names: tuple[str, ...], folder: Path, latents: F32) -> list[F32]:
    """Tensors of the graph by their names, for latents f32 [B,M,d_z]."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    float32 = onnx.TensorProto.FLOAT
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, float32, None) for name in names)
    drop_unused(copy.graph)
    session = open_session(copy.SerializeToString(), 1, folder)
    given = {i.name: latents for i in session.get_inputs()}
    found: list[F32] = guarded(lambda: session.run(list(names), given), "adapter.onnx")
    return found
