"""A language model's embedding table inside a trained module's graph, which does not know how it is stored.

The graph expects what the LLM's embedding *module* returns, in the dtype it was traced with. The bundle holds the
table once, in the decoder's dtype and, for Gemma, without the factor that the module multiplies by. Between the
stored table and its readers come the nodes that make one of the other; a lookup is made first, on the narrow rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, numpy_helper

from .decoder import rounded
from .external import ELEMENT_TYPES as STORED_TYPES
from .external import Layout, find, point
from .graph import ELEMENT_TYPES


@dataclass(frozen=True)
class Table:
    """A table of another file of the bundle.

    Attributes:
        layout: the file.
        scale: factor between a stored row and what the embedding module returns.
        dtype: numpy name of the dtype that the module computes in: factor and product are rounded to it.
    """

    layout: Layout
    scale: float = 1.0
    dtype: str = "float32"


def place_table(model: onnx.ModelProto, tensor: onnx.TensorProto, table: Table) -> None:
    """Point an initializer at ``table`` and give its readers the values and the dtype they were traced with.

    Changes ``model``. ensures: where the table is stored as traced and needs no factor, no node is added.

    Raises:
        BundleError: 4008 the file has no such tensor, 4001 it has another shape.
    """
    wanted = tensor.data_type
    tensor.data_type = STORED_TYPES[find(tensor.name, table.layout).dtype]
    point(tensor, table.layout, tensor.name)
    if tensor.data_type == wanted and table.scale == 1.0:
        return
    kept, whole = [], f"{tensor.name}.output"
    for node in model.graph.node:
        reads = list(node.input).count(tensor.name)
        if reads == 1 and node.op_type == "Gather" and node.input[0] == tensor.name:
            value = node.output[0]
            node.output[0] = f"{value}.stored"
            kept += [node, *_made(model, table, tensor.data_type, wanted, value)]
            continue
        if reads:
            if not any(whole in n.output for n in kept):
                kept += _made(model, table, tensor.data_type, wanted, whole, tensor.name)
            for index, name in enumerate(node.input):
                node.input[index] = whole if name == tensor.name else name
        kept.append(node)
    # Copies first: the list's elements are still parts of the field that is emptied.
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _made(
    model: onnx.ModelProto, table: Table, have: int, want: int, value: str, source: str = ""
) -> Iterator[onnx.NodeProto]:
    """Nodes from rows as stored (default: ``value.stored``) to ``value``.

    The product is made in float32 and rounded to the module's dtype, which gives the bits of a product in that dtype
    (two factors of 11 bits or fewer), also on engines that cannot multiply bfloat16.
    """
    steps: list[int] = []
    if table.scale != 1.0:
        steps += [TensorProto.FLOAT] if have != TensorProto.FLOAT else []
        steps += [0]
        steps += [ELEMENT_TYPES[table.dtype], TensorProto.FLOAT] if table.dtype != "float32" else []
        have = TensorProto.FLOAT
    steps += [want] if have != want else []
    at = source or f"{value}.stored"
    for number, step in enumerate(steps, 1):
        out = value if number == len(steps) else f"{value}.{number}"
        if step:
            yield helper.make_node("Cast", [at], [out], name=f"{out}/Cast", to=step)
        else:
            yield helper.make_node("Mul", [at, _factor(model, table)], [out], name=f"{out}/Mul")
        at = out


def _factor(model: onnx.ModelProto, table: Table) -> str:
    """Name of the factor, an initializer that is added once."""
    name = "embed_scale"
    if all(i.name != name for i in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(rounded(table.scale, table.dtype), name))
    return name
