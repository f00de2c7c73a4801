"""The protobuf walk finds every external file that the onnx package would, and never trips over odd bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from latentwire.engines.onnx_paths import external_files


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="4096")
    return tensor


def test_every_place_a_tensor_can_stand() -> None:
    inner = helper.make_graph([], "inner", [], [], [external("c", "in-subgraph")])
    holder = helper.make_node("If", ["x"], ["y"])
    holder.attribute.append(helper.make_attribute("then_branch", inner))
    constant = helper.make_node("Constant", [], ["z"])
    constant.attribute.append(helper.make_attribute("value", external("d", "in-attribute")))
    many = helper.make_node("Odd", [], ["o"])
    many.attribute.append(helper.make_attribute("values", [external("e", "in-list")]))
    function = helper.make_function("own", "F", ["a"], ["b"], [constant], [helper.make_opsetid("", 24)])
    default = helper.make_attribute("weights", external("f", "in-function-default"))
    function.attribute_proto.append(default)
    graph = helper.make_graph(
        [holder, many], "outer", [], [], [external("a", "plain"), numpy_helper.from_array(np.zeros(3), "inline")]
    )
    sparse = onnx.SparseTensorProto(values=external("g", "in-sparse"), dims=[1])
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().initialization.initializer.append(external("h", "in-training"))
    assert external_files(model.SerializeToString()) == {
        "plain",
        "in-subgraph",
        "in-attribute",
        "in-list",
        "in-function-default",
        "in-sparse",
        "in-training",
    }


def test_nothing_external() -> None:
    assert external_files(b"") == set()
    assert external_files(helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()) == set()


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Names or a ValueError, never anything else and never without end."""
    with contextlib.suppress(ValueError):
        external_files(data)


def test_nesting_without_end() -> None:
    data = b""
    for _ in range(200):
        data = nested(7 if len(data) > 4000 else 1, nested(5, nested(6, data)))
    with pytest.raises(ValueError, match="nested too deep"):
        external_files(nested(7, data))


def nested(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while True:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + content
