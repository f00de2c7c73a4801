"""Read a GGUF file: metadata and where each tensor lies. No tensor data is read here.

In: a path. Out: ``Gguf``. Little-endian GGUF version 2 or 3, as the format's specification in the ggml
repository (docs/gguf.md) describes it. All lengths are checked against the file before they are used.

Errors: ModelError 3202 for a file that is not GGUF, cut short or inconsistent.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError

MAGIC: Final = b"GGUF"
MAX_ITEMS: Final = 1 << 24
"""Most metadata keys, tensors or array items that are believed."""

_SCALARS: Final = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: as the file says, ``blk.0.attn_q.weight``.
        shape: rows first, as numpy has it (the file lists the dimensions the other way round).
        ggml_type: number of the quantisation.
        start: offset of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start: int


@dataclass(frozen=True)
class Gguf:
    """What a file says.

    Attributes:
        data: uint8 [bytes], the file, mapped.
        metadata: keys as written; arrays are lists.
        tensors: in file order.
    """

    data: npt.NDArray[np.uint8]
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_gguf(path: Path) -> Gguf:
    """Metadata and tensor table of the GGUF file at ``path``."""
    if path.stat().st_size < 24:
        raise _damaged(path, "a GGUF file", f"{path.stat().st_size} bytes")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    cursor = _Cursor(path, data)
    if cursor.take(4) != MAGIC:
        raise _damaged(path, "the bytes 'GGUF' at its start", repr(data[:4].tobytes()))
    version = int(cursor.scalar(4))
    if version not in (2, 3):
        raise _damaged(path, "GGUF version 2 or 3", str(version))
    tensor_count, key_count = cursor.count(), cursor.count()
    metadata = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(int(cursor.scalar(4)))
    table = [_tensor_row(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise _damaged(path, "an alignment of 1 to 1048576 bytes", repr(alignment))
    base = -(-cursor.at // alignment) * alignment
    tensors = tuple(TensorInfo(name, shape, kind, base + offset) for name, shape, kind, offset in table)
    return Gguf(data, metadata, tensors)


def _tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    dims = [int(cursor.scalar(10)) for _ in range(min(int(cursor.scalar(4)), 8))]
    if not dims or math.prod(dims) > 1 << 40:
        raise _damaged(cursor.path, f"a plausible shape of {name}", str(dims))
    return name, tuple(reversed(dims)), int(cursor.scalar(4)), int(cursor.scalar(10))


class _Cursor:
    """A reading position that never leaves the file."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path, self.at = path, 0
        self._view = memoryview(data)  # type: ignore[arg-type]

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self._view):
            raise _damaged(self.path, f"{count} bytes at offset {self.at}", f"only {len(self._view) - self.at}")
        self.at += count
        return bytes(self._view[self.at - count : self.at])

    def scalar(self, kind: int) -> int | float:
        dtype = np.dtype(_SCALARS[kind])
        value = np.frombuffer(self.take(dtype.itemsize), dtype)[0]
        return float(value) if dtype.kind == "f" else int(value)

    def count(self) -> int:
        (count,) = struct.unpack("<Q", self.take(8))
        if count > MAX_ITEMS:
            raise _damaged(self.path, f"at most {MAX_ITEMS} items at offset {self.at - 8}", str(count))
        return int(count)

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return str(self.take(length), "utf-8", "strict")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"UTF-8 at offset {self.at - length}", str(error)) from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise _damaged(self.path, f"a known value type at offset {self.at}", str(kind))
        value = self.scalar(kind)
        return bool(value) if kind == _BOOL else value

    def _array(self) -> list[Any]:
        kind, count = int(self.scalar(4)), self.count()
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _damaged(self.path, f"an array of numbers or strings at offset {self.at}", f"type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return [bool(value) for value in values] if kind == _BOOL else values


def _damaged(path: Path, expected: str, got: str) -> ModelError:
    return ModelError(3202, "GGUF file is damaged", where=str(path), expected=f"expected {expected}, got {got}")
