"""Write a safetensors file tensor by tensor, block by block, hashing it on the way.

In: names, shapes and blocks of float32 rows. Out: a file and its SHA-256. Memory stays at one block.

The format is of the safetensors project: 8 bytes header length (little-endian), JSON header, tensor bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Written:
    """What was written: hex digest and size in bytes."""

    sha256: str
    size: int


def write_float32(path: Path, shapes: Mapping[str, Sequence[int]], blocks: Iterable[Array]) -> Written:
    """Write the tensors named in ``shapes``, in that order.

    Args:
        path: the file to create.
        shapes: name -> shape.
        blocks: all values in order, cut anywhere (a block never needs to end where a tensor ends).

    Raises ValueError when the blocks do not hold exactly the values that the shapes call for.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as handle:
        for piece in _pieces(shapes, blocks):
            handle.write(piece)
            digest.update(piece)
            size += len(piece)
    return Written(digest.hexdigest(), size)


def _pieces(shapes: Mapping[str, Sequence[int]], blocks: Iterable[Array]) -> Iterator[bytes]:
    header, wanted = _header(shapes)
    yield header
    for block in blocks:
        piece = np.ascontiguousarray(block, dtype="<f4").tobytes()
        wanted -= len(piece)
        yield piece
    if wanted:
        raise ValueError(f"tensor data does not fit the shapes: {wanted} bytes missing")


def _header(shapes: Mapping[str, Sequence[int]]) -> tuple[bytes, int]:
    """The header, padded with spaces to a multiple of 8, and the bytes of data that follow."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at
