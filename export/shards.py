"""The safetensors files of one model, read in blocks.

In: paths. Out: names, shapes, and rows or columns as they are stored. Bytes are read into one block, not mapped: a
mapped file stays in memory as long as there is room, which hides how much an export really needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import BundleError, ModelError
from .external import Place, read_layout

Array = npt.NDArray[Any]

BLOCK: Final = 1 << 23
"""Elements read at once: 16 MiB of bfloat16, and a few times that while they are converted."""

DTYPES: Final[dict[str, str]] = {
    "I64": "int64",
    "F32": "float32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "I8": "int8",
    "U8": "uint8",
}
"""Dtypes by their names in a file -> in numpy, in the order in which the safetensors library writes their tensors."""
FLOATS: Final = ("F32", "F16", "BF16")
"""What a model's own weights may be."""


@dataclass(frozen=True)
class Held:
    """One tensor: the open file, its path, where it lies there."""

    file: FileIO
    path: Path
    place: Place


class Shards:
    """Opens the files and hands out tensors by name. Use as a context manager; nothing is kept in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.held: dict[str, Held] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open all files.

        Raises:
            ModelError: 3204 a file is missing, 3206 one cannot be read (cut, or not safetensors), 3207 a tensor
                lies in two of them.
        """
        with ExitStack() as stack:
            for path in self.paths:
                self._open(path, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """As stored."""
        return self.held[name].place.shape

    def rows(self, name: str, elements: int = BLOCK) -> Iterator[Array]:
        """Blocks of about ``elements`` values along the first axis, one row at the least, of the stored dtype.

        Raises:
            ModelError: 3203 a dtype that is no plain float, 3206 the bytes cannot be read.
        """
        held = self.held[name]
        dtype, shape = self._dtype(name, held), held.place.shape
        row = int(np.prod(shape[1:], dtype=np.int64))
        step, at = max(1, elements // max(1, row)), held.place.offset
        for start in range(0, shape[0], step):
            block = np.empty((min(step, shape[0] - start), *shape[1:]), dtype)
            _fill(held, name, block, at)
            at += block.nbytes
            yield block

    def part(self, name: str, axis: int, at: int, count: int) -> Array:
        """``count`` rows (axis 0) or columns (axis 1) of a tensor from index ``at`` on, of the stored dtype.

        Raises:
            ModelError: 3206 the bytes cannot be read.
        """
        import ml_dtypes  # noqa: F401  # teaches numpy the names of the narrow dtypes

        held = self.held[name]
        shape, dtype = held.place.shape, np.dtype(DTYPES[held.place.dtype])
        count = min(count, shape[axis] - at)
        block = np.empty((*shape[:axis], count, *shape[axis + 1 :]), dtype)
        inner = int(np.prod(shape[axis + 1 :], dtype=np.int64)) * dtype.itemsize
        for number, run in enumerate(block.reshape(-1, count * inner // dtype.itemsize)):
            _fill(held, name, run, held.place.offset + (number * shape[axis] + at) * inner)
        return block

    def _open(self, path: Path, stack: ExitStack) -> None:
        if not path.is_file():
            raise ModelError(3204, "a weight file is missing", where=str(path), fix="fetch the model again")
        try:
            layout = read_layout(path)
        except BundleError as e:
            raise _unreadable(path, e.expected) from e
        file = stack.enter_context(path.open("rb", buffering=0))
        for name, place in layout.places.items():
            if name in self.held:
                raise ModelError(
                    3207,
                    "two weight files hold the same tensor",
                    where=f"tensor {name} in {path}",
                    expected=f"expected it in {self.held[name].path.name} only",
                    fix="fetch the model again",
                )
            self.held[name] = Held(file, path, place)

    @staticmethod
    def _dtype(name: str, held: Held) -> np.dtype[Any]:
        import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16

        if held.place.dtype not in FLOATS:
            raise ModelError(
                3203,
                f"unsupported weight dtype {held.place.dtype}",
                where=f"tensor {name} in {held.path}",
                expected=f"supported: {', '.join(FLOATS)}",
                fix="choose the model's unquantised form",
            )
        return np.dtype(DTYPES[held.place.dtype])


def _fill(held: Held, name: str, block: Array, at: int) -> None:
    """Read ``block`` from byte ``at`` of the file."""
    left = block.reshape(-1).view(np.uint8).data
    try:
        held.file.seek(at)
        while left:
            got = held.file.readinto(left)
            if not got:
                raise _unreadable(held.path, f"tensor {name} ends early")
            left = left[got:]
    except OSError as e:
        raise _unreadable(held.path, f"tensor {name}: {e}") from e


def _unreadable(path: Path, expected: str) -> ModelError:
    return ModelError(
        3206, "cannot read a weight file", where=str(path), expected=expected, fix="fetch the model again"
    )
