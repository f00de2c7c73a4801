"""Weights in safetensors files, and ONNX tensors that point into them.

One file serves two readers: safetensors reads names, ONNX engines read byte ranges. Written through the
safetensors library and read back through it before anything points at it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx
from onnx import TensorProto

from ..core.errors import BundleError

ELEMENT_TYPES: Final[dict[str, int]] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
    "I64": TensorProto.INT64,
    "I32": TensorProto.INT32,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}


@dataclass(frozen=True)
class Place:
    """One tensor of a file: safetensors dtype, shape, first byte in the file, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Layout:
    """What a safetensors file holds and where. ``location`` is its bare file name."""

    location: str
    places: Mapping[str, Place]


def write_weights(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> Layout:
    """Write a safetensors file and return where its tensors lie."""
    from safetensors.numpy import save_file

    save_file(dict(tensors), str(path), metadata={"format": "latentwire"})
    return read_layout(path)


def read_layout(path: Path) -> Layout:
    """Where the tensors of a safetensors file lie.

    Raises:
        BundleError: 4001 not a safetensors file, or one the library refuses.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as checked:
            names = set(checked.keys())
        with path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(size))
    except (SafetensorError, OSError, ValueError, struct.error) as e:
        raise BundleError(4001, "not a readable safetensors file", where=str(path), expected=str(e)) from e
    start = 8 + size
    places = {
        name: Place(entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0], _length(entry))
        for name, entry in header.items()
        if name in names
    }
    return Layout(path.name, places)


def _length(entry: Mapping[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return int(last - first)


def external_tensor(name: str, layout: Layout, source: str | None = None) -> onnx.TensorProto:
    """An initializer ``name`` whose bytes are tensor ``source`` (default: ``name``) of the file.

    Raises:
        BundleError: 4008 the file has no such tensor.
    """
    place = find(source or name, layout)
    tensor = TensorProto(name=name, data_type=ELEMENT_TYPES[place.dtype], dims=place.shape)
    point(tensor, layout, source or name)
    return tensor


def point(tensor: onnx.TensorProto, layout: Layout, source: str) -> None:
    """Make an existing initializer read tensor ``source`` of the file; changes its argument.

    Raises:
        BundleError: 4008 no such tensor, 4001 it has another shape or dtype than the initializer.
    """
    place = find(source, layout)
    if tuple(tensor.dims) != place.shape or tensor.data_type != ELEMENT_TYPES[place.dtype]:
        raise BundleError(
            4001,
            "graph and weights disagree",
            where=f"initializer {tensor.name}",
            expected=f"expected {TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}, "
            f"got {place.dtype} {list(place.shape)} in {layout.location}",
        )
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", layout.location), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))


def find(name: str, layout: Layout) -> Place:
    """Place of a tensor, or BundleError 4008."""
    if name not in layout.places:
        raise BundleError(4008, "weight file has no such tensor", where=f"{name} in {layout.location}")
    return layout.places[name]
