"""A small ONNX writer: nodes with fresh names, inline constants, weights that live in a safetensors file.

Knows the ONNX format and nothing of language models. Opset 24 with IR 11 loads in every engine in use;
what the onnx package writes by default does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..engines.tensors import GraphSpec, TensorSpec
from .external import Layout, external_tensor

OPSET: Final = 24
IR_VERSION: Final = 11
PRODUCER: Final = "latentwire"

ELEMENT_TYPES: Final[dict[str, int]] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
}

CONTRIB: Final = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


class Graph:
    """One graph under construction.

    Args:
        name: of the graph.
        layout: tensors of the weight file, which ``weight`` may name; None for a graph without one.
        prefix: of fresh names, for nodes that join another graph's.
    """

    def __init__(self, name: str, layout: Layout | None = None, prefix: str = "") -> None:
        self.name, self.prefix = name, prefix
        self.layout = layout
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._count: dict[str, int] = {}
        self._shared: set[str] = set()

    def op(self, op_type: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name; ``""`` is an absent input."""
        output = out or self._fresh(op_type)
        node = helper.make_node(
            op_type, list(inputs), [output], name=f"{output}/{op_type}", domain=domain, **attributes
        )
        self.nodes.append(node)
        return output

    def once(self, name: str, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """As ``op`` with output ``name``, which several parts of the graph share: the first call makes it."""
        if name not in self._shared:
            self._shared.add(name)
            self.op(op_type, *inputs, out=name, domain=domain, **attributes)
        return name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """An array inside the ONNX file; the same name twice is the same constant."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str) -> str:
        """A tensor of the weight file, by its name there."""
        if self.layout is None:
            raise ValueError(f"graph {self.name} has no weight file, yet asks for {name}")
        if name not in self.initializers:
            self.initializers[name] = external_tensor(name, self.layout)
        return name

    def model(self, spec: GraphSpec, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
        """The finished model, with inputs and outputs as ``spec`` says."""
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [_value(t) for t in spec.inputs],
            [_value(t) for t in spec.outputs],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        domains = [f.domain for f in functions] + [n.domain for n in self.nodes]
        opsets += [helper.make_opsetid(domain, 1) for domain in dict.fromkeys(domains) if domain]
        model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), producer_name=PRODUCER)
        model.ir_version = IR_VERSION
        return model

    def _fresh(self, op_type: str) -> str:
        self._count[op_type] = self._count.get(op_type, 0) + 1
        return f"{self.prefix}{op_type.lower()}_{self._count[op_type]}"


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], list(spec.dims))


def read_spec(model: onnx.ModelProto) -> GraphSpec:
    """Inputs and outputs of a model, as the manifest records them."""
    return GraphSpec(
        tuple(_spec(v) for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer}),
        tuple(_spec(v) for v in model.graph.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, dims)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model and check it as it lies on the disk.

    requires: weight files it names lie in the same folder. ensures: the checker passed.
    """
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=False)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output needs; changes its argument."""
    needed, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):  # nodes stand in the order in which they run
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    tensors = [t for t in graph.initializer if t.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)
