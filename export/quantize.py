"""One tensor of a decoder in the form a precision stores it in: names, dtypes and shapes first, values later.

In: a graph tensor's name, shape and kind. Out: what lies in the weight file for it. Pure numpy. ``stored`` needs
no values, so a file's header can be written before any weight is read; ``convert`` takes a whole tensor or a
block of its output channels, because every form has one scale a channel or finer.

    kind     array given   plain      int8                            blocks of 32 along in           fp8
    matrix   [in,out]      [in,out]   .int8 [in,out]  .scale [out]    .blocks .scale [out,blocks..]   .fp8 .scale
    head     [out,in]      [out,in]   as a matrix                     as a matrix                     plain
    table    [V,H]         [V,H]      float16                         float16                         float16
    tied     [V,H]         [V,H]      table, and ``llm.head`` as a matrix
    float    any           everything else, in the precision's dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from .precision import Precision
from .weights import EMBEDDING, HEAD

Array = npt.NDArray[Any]
Kind = Literal["matrix", "head", "table", "tied", "float"]

BLOCK: Final = 32
"""Weights a scale, in the forms with blocks."""
FP8_DTYPE: Final = "float8_e4m3fn"
FP8_TOP: Final = 448.0
"""Largest number of E4M3."""

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
    if _is_float(kind, precision):
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
    if _is_float(kind, precision):
        return {name: _narrow(name, array, precision.dtype)}
    return _quantise(name, array if kind == "matrix" else array.T, precision)


def quantises_head(precision: Precision) -> bool:
    """FP8 leaves the head as it is, as NVIDIA's own recipe does."""
    return precision.matmul in ("int8", "blocks")


def _second_head(kind: Kind, precision: Precision) -> bool:
    """A tied model's table is read by rows, its quantised head is multiplied with: two tensors."""
    return kind == "tied" and quantises_head(precision)


def _is_float(kind: Kind, precision: Precision) -> bool:
    return precision.matmul == "plain" or kind == "float" or (kind == "head" and not quantises_head(precision))


def _quantised(name: str, shape: tuple[int, ...], precision: Precision) -> list[Stored]:
    """For a matrix [in,out]."""
    width, count = shape
    if precision.matmul == "int8":
        return [Stored(f"{name}.int8", "I8", shape, axis=1), Stored(f"{name}.scale", "F32", (count,))]
    if precision.matmul == "fp8":
        return [Stored(f"{name}.fp8", "F8_E4M3", shape, axis=1), Stored(f"{name}.scale", "F16", (count,))]
    blocks = -(-width // BLOCK)
    return [
        Stored(f"{name}.blocks", "U8", (count, blocks, BLOCK * precision.bits // 8)),
        Stored(f"{name}.scale", FLOATS[precision.dtype], (count, blocks)),
    ]


def _quantise(name: str, matrix: Array, precision: Precision) -> dict[str, Array]:
    """Of [in,n]."""
    wide = np.asarray(matrix, np.float32)
    if precision.matmul == "int8":
        scale = channel_scale(wide, 127.0)
        return {f"{name}.int8": np.rint(wide / scale).astype(np.int8, order="C"), f"{name}.scale": scale}
    if precision.matmul == "fp8":
        values, narrow = to_fp8(wide)
        return {f"{name}.fp8": values, f"{name}.scale": narrow}
    blocks, scale = to_blocks(wide, precision.bits)
    return {f"{name}.blocks": blocks, f"{name}.scale": scale.astype(precision.dtype)}


def channel_scale(matrix: Array, top: float) -> npt.NDArray[np.float32]:
    """Scale [n] that brings each column's largest magnitude to ``top``; 1 for a column of zeros."""
    largest = np.abs(matrix).max(axis=0)
    return np.where(largest > 0, largest / np.float32(top), 1).astype(np.float32)


def to_fp8(matrix: Array) -> tuple[Array, npt.NDArray[np.float16]]:
    """E4M3 [in,n] and its scale [n], float16 as the graph multiplies with; the scale is rounded first."""
    scale = np.maximum(channel_scale(matrix, FP8_TOP), np.finfo(np.float16).smallest_subnormal).astype(np.float16)
    clipped = np.clip(matrix / scale.astype(np.float32), -FP8_TOP, FP8_TOP)
    return np.ascontiguousarray(clipped.astype(_dtype(FP8_DTYPE))), scale


def to_blocks(matrix: Array, bits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Blocks of 32 weights along [in], as ONNX Runtime's MatMulNBits reads them without zero points.

    A number v is stored as v/scale + 2^(bits-1). There is one step more below the middle than above, so the
    scale takes the sign that puts the largest magnitude there.

    Returns:
        uint8 [n, blocks, 32*bits/8], of 4 bits the lower half first; scale float32 [n, blocks].
    """
    width, count = matrix.shape
    half, blocks = 1 << (bits - 1), -(-width // BLOCK)
    padded = np.zeros((count, blocks * BLOCK), np.float32)
    padded[:, :width] = matrix.T
    rows = padded.reshape(count, blocks, BLOCK)
    low, high = rows.min(axis=2), rows.max(axis=2)
    down = -low >= high  # The largest magnitude is negative already.
    far, near = np.where(down, -low, high), np.where(down, high, -low)
    # Nothing is cut off by more than half a step on the shorter side.
    size = np.maximum(far / half, near / (half - 0.5))
    scale = np.where(size > 0, np.where(down, size, -size), 1).astype(np.float32)
    steps = np.clip(np.rint(rows / scale[..., None]) + half, 0, 2 * half - 1).astype(np.uint8)
    return (steps[..., 0::2] | (steps[..., 1::2] << 4) if bits == 4 else steps), scale


def restore(
    name: str, tensors: Mapping[str, Array], shape: tuple[int, ...], precision: Precision
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a quantised matrix stands for, and how far each value may be from the original.

    Args:
        name: of the graph tensor; of a tied model's second head, ``llm.head``.
        tensors: the stored ones, whole or a block of output channels, as ``convert`` gave them.
        shape: [in,n] of the result.
        precision: one that quantises.

    Returns:
        float32 [in,n] twice: values, and half a step at each.
    """
    scale: npt.NDArray[np.float32] = tensors[f"{name}.scale"].astype(np.float32)
    if precision.matmul == "int8":
        return tensors[f"{name}.int8"] * scale, np.broadcast_to(scale / np.float32(2), shape)
    if precision.matmul == "fp8":
        values = tensors[f"{name}.fp8"].astype(np.float32)
        # Three bits after the leading one; below 2^-6 the steps are 2^-9.
        half: Array = np.maximum(np.abs(values) / np.float32(16), np.float32(2.0**-10)) * scale
        return values * scale, half
    packed, middle = tensors[f"{name}.blocks"], 1 << (precision.bits - 1)
    if precision.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK)
    values = (packed.astype(np.float32) - np.float32(middle)) * scale[..., None]
    steps: Array = np.broadcast_to(np.abs(scale)[..., None] / np.float32(2), values.shape)
    return values.reshape(len(values), -1)[:, : shape[0]].T, steps.reshape(len(values), -1)[:, : shape[0]].T


def _dtype(name: str) -> Any:
    import ml_dtypes  # noqa: F401  # teaches numpy the names bfloat16 and float8_e4m3fn

    return np.dtype(name)


def _narrow(name: str, array: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array.astype(_dtype(dtype), copy=False))
    if dtype == "float16" and not np.isfinite(narrow).all():
        raise ModelError(
            3206,
            f"weights do not fit {dtype}",
            where=f"tensor {name}",
            expected=f"largest magnitude {float(np.abs(array).max()):.3g}",
            fix="choose --precision bf16 or fp32",
        )
    return narrow
