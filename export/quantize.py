"""One tensor of a decoder in the form a precision stores it in: names, dtypes and shapes first, values later.

In: a graph tensor's name, shape and kind. Out: what lies in the weight file for it. Pure numpy. ``stored`` needs
no values, so a file's header can be written before any weight is read; ``convert`` takes a whole tensor or a
block of its output channels, because every form has one scale a channel or finer.

    kind      array given            plain            int8                    blocks                fp8
    matrix    [in,out]               [in,out]         .int8 [in,out] .scale   .blocks [out,..]      .fp8 [in,out]
    head      [out,in]               [out,in]         .int8 [in,out] .scale   .scale                .scale
    table     [V,H]                  [V,H]            float table only, the head of a tied model beside it
    float     any                    as it is, in the precision's dtype
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from .precision import Precision
from .weights import EMBEDDING, HEAD

Array = npt.NDArray[Any]
Kind = Literal["matrix", "head", "table", "tied", "float"]

MATRICES: Final = ("q", "k", "v", "o", "gate", "up", "down")
FLOATS: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Stored:
    """One tensor of the weight file.

    Attributes:
        name: there.
        dtype: as safetensors writes it.
        shape: of the whole tensor.
        axis: along which output channels (for a table: rows) lie; blocks are joined along it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = 0


def kind(name: str, *, tied: bool) -> Kind:
    """What a graph tensor is. ``tied``: the head is the embedding table, which then is ``tied``."""
    if name == EMBEDDING:
        return "tied" if tied else "table"
    if name == HEAD:
        return "head"
    return "matrix" if name.startswith("layer.") and name.rsplit(".", 1)[1] in MATRICES else "float"


def table_dtype(precision: Precision) -> str:
    """Numpy name of the embedding table's dtype: half of float32 where the matrices are quantised anyway."""
    return precision.dtype if precision.matmul == "plain" else "float16"


def stored(name: str, shape: tuple[int, ...], kind: Kind, precision: Precision) -> list[Stored]:
    """What lies in the weight file for one graph tensor of this shape, in the graph's layout."""
    if kind in ("table", "tied"):
        table = Stored(name, FLOATS[table_dtype(precision)], shape)
        return [table, *(_quantised(HEAD, shape[::-1], precision) if _second_head(kind, precision) else ())]
    if precision.matmul == "plain" or kind == "float":
        return [Stored(name, FLOATS[precision.dtype], shape, axis=1 if kind == "matrix" else 0)]
    return _quantised(name, shape if kind == "matrix" else shape[::-1], precision)


def convert(name: str, array: Array, kind: Kind, precision: Precision) -> dict[str, Array]:
    """Values of the tensors that ``stored`` lists.

    Args:
        name: of the graph tensor.
        array: it, or a block of its output channels (``matrix``: columns; else rows); any float dtype.
        kind: as ``kind`` says.
        precision: the form.

    Returns:
        arrays by stored name; of a block, their blocks along ``Stored.axis``.

    Raises:
        ModelError: 3206 a value does not fit the narrower dtype.
    """
    if kind in ("table", "tied"):
        found = {name: _narrow(name, array, table_dtype(precision))}
        return found | (_quantise(HEAD, array.T, precision) if _second_head(kind, precision) else {})
    if precision.matmul == "plain" or kind == "float":
        return {name: _narrow(name, array, precision.dtype)}
    return _quantise(name, array if kind == "matrix" else array.T, precision)


def _second_head(kind: Kind, precision: Precision) -> bool:
    """A tied model's table is read by rows, its quantised head is multiplied with: two tensors."""
    return kind == "tied" and precision.matmul != "plain"


def _quantised(name: str, shape: tuple[int, ...], precision: Precision) -> list[Stored]:
    """For a matrix [in,out]."""
    if precision.matmul == "int8":
        return [Stored(f"{name}.int8", "I8", shape, axis=1), Stored(f"{name}.scale", "F32", shape[1:])]
    raise NotImplementedError(precision.matmul)


def _quantise(name: str, matrix: Array, precision: Precision) -> dict[str, Array]:
    """Of [in,n]."""
    if precision.matmul == "int8":
        wide = np.asarray(matrix, np.float32)
        scale = channel_scale(wide, 127.0)
        return {f"{name}.int8": np.rint(wide / scale).astype(np.int8, order="C"), f"{name}.scale": scale}
    raise NotImplementedError(precision.matmul)


def channel_scale(matrix: Array, top: float) -> npt.NDArray[np.float32]:
    """Scale [n] that brings each column's largest magnitude to ``top``; 1 for a column of zeros."""
    largest = np.abs(matrix).max(axis=0)
    return np.where(largest > 0, largest / np.float32(top), 1).astype(np.float32)


def _narrow(name: str, array: Array, dtype: str) -> Array:
    import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16

    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array.astype(dtype, copy=False))
    if dtype == "float16" and not np.isfinite(narrow).all():
        raise ModelError(
            3206,
            f"weights do not fit {dtype}",
            where=f"tensor {name}",
            expected=f"largest magnitude {float(np.abs(array).max()):.3g}",
            fix="choose --precision bf16 or fp32",
        )
    return narrow
