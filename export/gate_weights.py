"""The gate on weights: every tensor of the bundle's file against the model's own, value by value, in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engines.bundle import Bundle
from ..models.folder import ModelFolder
from .families import read_config
from .findings import Finding, departed
from .precision import Precision, precision
from .quantize import Stored, kind, restore, stored
from .weights import HEAD, WeightReader

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

BLOCK: Final = 1 << 22
"""Elements compared at once."""
ROOM: Final = 1e-3
"""Half steps that the arithmetic of a scale may add."""
NARROW: Final = {"int8": 254.0, "w8": 255.0, "w4": 15.0, "fp8": 16.0}
"""Half a step is at most the channel's largest magnitude divided by this: wider steps would excuse any error."""


def check_weights(bundle: Bundle, llm: ModelFolder) -> Finding:
    """Plain dtypes hold the model's values, rounded; quantised ones lie within half a step of them.

    Raises:
        ParityError: 4010, naming the tensor.
        ModelError: 3206, 3207 the model's own weights are unusable.
    """
    import ml_dtypes  # noqa: F401  # teaches numpy the names of the narrow dtypes
    from safetensors import safe_open

    form = precision(bundle.manifest.precision)
    config = read_config(llm.config, str(llm.path))
    worst = 0.0
    with WeightReader(llm.weights, config) as reader, safe_open(bundle.file("decoder.safetensors"), "numpy") as ours:
        for name in reader.sources:
            want, what = reader.get(name), kind(name, tied=config.tied)
            parts = stored(name, want.shape, what, form)
            if parts[0].name == name:
                _check_plain(ours, name, want)
                parts = parts[1:]
            if parts:
                rows_are_outputs = what in ("head", "tied")
                matrix = want.T if rows_are_outputs else want
                worst = max(worst, _check_steps(ours, HEAD if rows_are_outputs else name, matrix, parts, form))
        detail = f"{len(reader.sources)} tensors, matrices as {form.name}"
    if form.matmul == "plain":
        return Finding("weights", "file", "passed", 0.0, 0.0, "values", detail)
    return Finding("weights", "file", "passed", worst, 0.5, "steps", detail)


def _check_plain(ours: Any, name: str, want: F32) -> None:
    """Equal after rounding to the dtype that the file has."""
    have = ours.get_slice(name)
    if tuple(have.get_shape()) != want.shape:
        raise departed("weights", "file", name, None, None, "", f"expected {want.shape}, got {have.get_shape()}")
    for rows in _blocks(want):
        block = have[rows] if want.ndim > 1 else ours.get_tensor(name)[rows]
        other = block != want[rows].astype(block.dtype)
        if other.any():
            largest = float(np.abs(block.astype(np.float32) - want[rows])[other].max())
            where = f"{int(other.sum())} values from row {rows.start} on, by up to {largest:.3g}"
            raise departed("weights", "file", name, float(other.sum()), 0.0, "values", where)


def _check_steps(ours: Any, name: str, want: F32, parts: Sequence[Stored], form: Precision) -> float:
    """Matrix [in,out] within half a step of what is stored for it. Returns the worst distance in steps."""
    worst = 0.0
    for columns in _blocks(want.T):
        tensors = {p.name: _slice(ours, p, columns) for p in parts}
        right = want[:, columns]
        values, half = restore(name, tensors, right.shape, form)
        largest = np.abs(right).max(axis=0)
        wide = (half.max(axis=0) > largest / NARROW[form.name] * 1.01) & (largest > 0)
        if wide.any():
            at = int(wide.argmax())
            where = (
                f"output {columns.start + at}: half a step is {half[:, at].max():.3g}, values reach {largest[at]:.3g}"
            )
            raise departed("weights", "file", f"{name}.scale", None, None, "", where)
        error = np.abs(values - right) / half
        worst = max(worst, float(error.max()) / 2)
        if not worst <= 0.5 + ROOM:
            at = columns.start + int(error.max(axis=0).argmax())
            raise departed("weights", "file", name, worst, 0.5, "steps", f"output {at}")
    return worst


def _slice(ours: Any, part: Stored, columns: slice) -> Array:
    view = ours.get_slice(part.name)
    array: Array = view[columns] if part.axis == 0 else view[:, columns]
    return array


def _blocks(array: Array) -> Iterator[slice]:
    """Rows of ``array``, about BLOCK elements at a time."""
    step = max(1, BLOCK // max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
