"""Which files an ONNX file names as external data, read without the onnx package.

The runtime has no onnx package, yet it must know before it hands a graph to an engine that the graph
points at no file outside its bundle. This is a protobuf walk over the few message types that can hold a
tensor; everything else is skipped. Bytes in, names out: no file is opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> {field number: message of that field}; field numbers as in the ONNX protobuf definition.
_SCHEMA: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_MAX_DEPTH: Final = 64


def external_files(model: bytes) -> set[str]:
    """Values of every ``location`` entry of every tensor in a serialised ONNX model.

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    return set(_walk(memoryview(model), "model", 0))


def _walk(data: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs nested too deep")
    if message == "entry":
        pair = {number: bytes(value) for number, value in _fields(data)}
        if pair.get(1) == b"location":
            yield pair.get(2, b"").decode("utf-8")
        return
    for number, value in _fields(data):
        child = _SCHEMA[message].get(number)
        if child is not None:
            yield from _walk(value, child, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of every length-delimited field."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the bytes end inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
