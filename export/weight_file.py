"""A safetensors file written piece by piece: names, dtypes and shapes first, values in any order, in blocks.

What a decoder weighs never has to fit in memory. The file is byte for byte the one that the safetensors library
would write for the same tensors, and is read back through that library before anything points at it.

Format: github.com/huggingface/safetensors: 8 bytes header length (little-endian), JSON header, tensor bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..core.console import track
from ..core.errors import ModelError
from ..core.files import disk_faults, require_space
from .decoder import rope_tables
from .external import Layout, read_layout
from .families import DecoderConfig
from .precision import Precision
from .quantize import Kind, Stored, convert, kind, quantises_head, stored
from .shards import DTYPES
from .smoothing import ENDING, Smoothing
from .weights import HEAD, WeightReader

Array = npt.NDArray[Any]


class WeightFile:
    """One file under construction. Use as a context manager; a body that ends well has written every value.

    Args:
        path: the file to make.
        tensors: all that it will hold.

    Raises:
        EnvironmentFault: 5004 no space, 5005 not permitted.
    """

    def __init__(self, path: Path, tensors: Iterable[Stored]) -> None:
        import ml_dtypes  # noqa: F401  # teaches numpy the names bfloat16 and float8_e4m3fn

        self.path = path
        order = list(DTYPES)
        self.tensors = {t.name: t for t in sorted(tensors, key=lambda t: (order.index(t.dtype), t.name))}
        self._left = {t.name: math.prod(t.shape) for t in self.tensors.values()}
        self._start: dict[str, int] = {}
        self._header, self.size = self._plan()
        self._file = -1

    def __enter__(self) -> Self:
        require_space(self.path.parent, self.size)
        with disk_faults(self.path):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            self._write(self._header, 0)
            os.ftruncate(self._file, self.size)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with disk_faults(self.path):
                    os.fsync(self._file)
        finally:
            os.close(self._file)
        if kind is None and (holes := [name for name, left in self._left.items() if left]):
            raise ValueError(f"{len(holes)} tensors of {self.path.name} are not fully written: {holes[0]}")

    def put(self, name: str, values: Array, at: int = 0) -> int:
        """Write a tensor, or the block of it that begins at index ``at`` of its axis; returns the bytes written.

        Raises:
            ValueError: the block has another dtype or shape than was announced, or lies outside.
            EnvironmentFault: 5004 no space.
        """
        tensor = self.tensors[name]
        axis, shape = tensor.axis, tensor.shape
        fits = values.shape[:axis] == shape[:axis] and values.shape[axis + 1 :] == shape[axis + 1 :]
        if values.dtype != np.dtype(DTYPES[tensor.dtype]) or not fits or at + values.shape[axis] > shape[axis]:
            raise ValueError(f"{name}: {values.dtype} {values.shape} at {at} is no part of {tensor}")
        inner = math.prod(shape[axis + 1 :]) * values.itemsize
        start, stride = self._start[name] + at * inner, shape[axis] * inner
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        run = values.shape[axis] * inner
        run = len(raw) if run == stride else run
        with disk_faults(self.path):
            for row, first in enumerate(range(0, len(raw), run)):
                self._write(raw[first : first + run], start + row * stride)
        self._left[name] -= values.size
        return values.nbytes

    def _plan(self) -> tuple[bytes, int]:
        """Header bytes, and the size of the whole file."""
        entries: dict[str, object] = {"__metadata__": {"format": "latentwire"}}
        at = 0
        for name, t in self.tensors.items():
            self._start[name] = at
            at += math.prod(t.shape) * np.dtype(DTYPES[t.dtype]).itemsize
            entries[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [self._start[name], at]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        self._start = {name: len(header) + start for name, start in self._start.items()}
        return header, len(header) + at

    def _write(self, data: bytes | memoryview, at: int) -> None:
        left = memoryview(data)
        while left:
            done = os.pwrite(self._file, left, at)
            left, at = left[done:], at + done


def write_decoder(
    path: Path, reader: WeightReader, config: DecoderConfig, precision: Precision, smoothing: Smoothing | None = None
) -> Layout:
    """All tensors of a decoder as ``precision`` stores them, and its rotation tables; memory stays at one block.

    ``smoothing``: shifts that the weights take and that are stored beside them.

    Raises:
        ModelError: 3206 NaN, or a value that does not fit the narrower dtype; 3203, 3206 as ``WeightReader.blocks``.
        EnvironmentFault: 5004 no space, 5005 not permitted.
    """
    smoothing = smoothing or Smoothing(config)
    kinds = {name: kind(name, tied=config.tied) for name in reader.sources}
    ropes = rope_tables(config)
    planned = [s for name, k in kinds.items() for s in stored(name, reader.shape(name), k, precision)]
    planned += [s for name, table in ropes.items() for s in stored(name, table.shape, "float", precision)]
    with WeightFile(path, planned + smoothing.stored()) as file, track("weights", file.size, "B") as progress:
        for name, k in kinds.items():
            for at, block in reader.blocks(name):
                for part, values in _values(name, k, at, block, precision, smoothing).items():
                    progress.advance(file.put(part, values, at))
        for name, table in ropes.items():
            for part, values in convert(name, table, "float", precision).items():
                file.put(part, values)
        for name, shift in smoothing.shifts.items():
            file.put(name + ENDING, shift)
    return read_layout(path)


def _values(
    name: str, kind: Kind, at: int, block: Array, precision: Precision, smoothing: Smoothing
) -> dict[str, Array]:
    """Stored parts of a block; of a tied table its rows as they are, and as the head they serve as, shifted."""
    if kind == "tied" and quantises_head(precision):
        head = convert(HEAD, smoothing.apply(HEAD, at, block), "head", precision)
        return convert(name, block, "table", precision) | head
    return convert(name, smoothing.apply(name, at, block), kind, precision)


def stream_table(path: Path, reader: WeightReader, source: str, name: str, scale: float) -> Layout:
    """One table [V,H] in float16, times ``scale``, as the only tensor ``name`` of a file.

    Raises:
        ModelError: 3206 NaN, or a value that does not fit float16.
        EnvironmentFault: 5004 no space, 5005 not permitted.
    """
    with WeightFile(path, [Stored(name, "F16", reader.shape(source))]) as file:
        for at, block in reader.blocks(source):
            with np.errstate(over="ignore"):
                rows = (block.astype(np.float32) * np.float32(scale)).astype(np.float16)
            if not np.isfinite(rows).all():
                raise ModelError(3206, "weights do not fit float16", where=f"tensor {source}")
            file.put(name, rows, at)
    return read_layout(path)
