"""An ONNX file run node by node in plain torch, in the order it was written; functions of the model are entered.

In: a graph file with its weights beside it, and tensors. Out: any tensors of the graph, by name. Slow, short,
and on any device and in any dtype that torch has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from ..core.errors import BundleError
from .torch_ops import DOMAINS, DTYPES, IN_PLACE, OPS


@dataclass(frozen=True)
class Node:
    """One step: operator, names of its inputs and outputs, attributes; ``body`` where it is a function."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    body: Function | None


@dataclass(frozen=True)
class Function:
    """A model-local function."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]


class TorchGraph:
    """One loaded graph.

    Args:
        path: an ONNX file; weights lie in files of the same folder.
        device: of weights and of every computation.

    Raises:
        BundleError: 4001 not an ONNX file, or an operator that is not among ``torch_ops.OPS``.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path = path
        self.device = torch.device(device)
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as e:  # protobuf's own, of several kinds
            raise BundleError(4001, "graph is not an ONNX file", where=str(path), expected=str(e)[:200]) from e
        self.functions: dict[tuple[str, str], Function] = {}
        for f in model.functions:
            nodes = tuple(self._node(n) for n in f.node)
            self.functions[f.domain, f.name] = Function(tuple(f.input), tuple(f.output), nodes)
        self.nodes = tuple(self._node(n) for n in model.graph.node)
        self.weights = {t.name: self._weight(t) for t in model.graph.initializer}
        self.outputs = tuple(o.name for o in model.graph.output)

    def run(
        self, given: Mapping[str, Tensor], places: Mapping[str, Tensor], watch: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Compute the graph.

        Args:
            given: every input by name.
            places: memory that outputs are written to. A cache is written in place exactly where the
                place of the output is its own memory.
            watch: names of further tensors to return: inputs, weights or results of any node.

        Returns:
            the graph's outputs and the watched tensors.
        """
        values: dict[str, Tensor] = {**self.weights, **given}
        # An input may be a cache, which this call changes.
        found: dict[str, Tensor] = {name: values[name].clone() for name in watch if name in values}
        wanted = {*self.outputs, *watch}
        last = _last_use(self.nodes)
        for step, node in enumerate(self.nodes):
            for name, tensor in self._call(node, values, places).items():
                values[name] = tensor
                if name in wanted:
                    found[name] = tensor
            for name in last.get(step, ()):
                values.pop(name, None)
        if missing := set(watch) - set(found):
            raise KeyError(f"no tensor {sorted(missing)} in {self.path}")
        return found

    def _call(self, node: Node, values: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs: list[Any] = [values[n] if n else None for n in node.inputs]
        if node.body is not None:
            return self._enter(node.body, node, inputs)
        for output, index in IN_PLACE.get(node.op, {}).items():
            place = places.get(node.outputs[output])
            if place is None or place.data_ptr() != inputs[index].data_ptr():
                inputs[index] = inputs[index].clone()
        result = OPS[node.op](inputs, node.attributes)
        found = dict(zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=True))
        for name, tensor in found.items():
            if name in places and places[name].data_ptr() != tensor.data_ptr():
                found[name] = places[name].copy_(tensor)
        return found

    def _enter(self, body: Function, node: Node, inputs: list[Any]) -> dict[str, Tensor]:
        inner = {name: t for name, t in zip(body.inputs, inputs, strict=False) if t is not None}
        for step in body.nodes:
            inner.update(self._call(step, _Absent(inner), {}))
        return {outer: inner[name] for outer, name in zip(node.outputs, body.outputs, strict=True)}

    def _node(self, node: onnx.NodeProto) -> Node:
        body = self.functions.get((node.domain, node.op_type))
        if body is None and (node.op_type not in OPS or node.domain not in DOMAINS):
            raise BundleError(
                4001,
                "torch-ref does not know an operator",
                where=f"{self.path}, node {node.name}",
                expected=f"{node.domain or 'ai.onnx'}::{node.op_type}",
                fix="run it with --engine ort",
            )
        attributes = {a.name: self._attribute(a) for a in node.attribute}
        return Node(node.op_type, tuple(node.input), tuple(node.output), attributes, body)

    def _attribute(self, attribute: onnx.AttributeProto) -> Any:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return torch.from_numpy(numpy_helper.to_array(value).copy()).to(self.device)
        return value

    def _weight(self, tensor: onnx.TensorProto) -> Tensor:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(self.device)
        entry = {e.key: e.value for e in tensor.external_data}
        # The folder's files were verified when the bundle was opened; still, only bare names are followed.
        file = self.path.parent / Path(entry["location"]).name
        dtype = DTYPES[tensor.data_type]
        data = np.memmap(file, np.uint8, "r", int(entry.get("offset", 0)), int(entry["length"]))
        return torch.from_numpy(np.array(data)).view(dtype).reshape(tuple(tensor.dims)).to(self.device)


class _Absent(dict[str, Any]):
    """Names inside a function; an input that the caller left out is None."""

    def __missing__(self, name: str) -> None:
        return None


def _last_use(nodes: Iterable[Node]) -> dict[int, list[str]]:
    """Step -> names that nothing reads afterwards."""
    last = {name: step for step, node in enumerate(nodes) for name in (*node.inputs, *node.outputs) if name}
    by_step: dict[int, list[str]] = {}
    for name, step in last.items():
        by_step.setdefault(step, []).append(name)
    return by_step
