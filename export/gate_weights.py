"""The gate on weights: every tensor of the bundle's file against the model's own, value by value, in blocks of rows.

Reads what the file holds by its own arithmetic, not by the code that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engines.bundle import Bundle
from ..models.folder import ModelFolder
from .families import read_config
from .findings import Finding, departed
from .precision import Precision, precision
from .quantize import kind, stored
from .weights import HEAD, WeightReader

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

BLOCK: Final = 1 << 22
"""Elements compared at once."""
HALF: Final = 0.5 + 1e-3
"""Steps between a value and its nearest step, and room for the division's own rounding."""


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
            plain = [p.name for p in stored(name, want.shape, what, form)]
            if name in plain:
                _check_plain(ours, name, want)
            if name not in plain or len(plain) > 1:
                rows_out = what in ("head", "tied")
                worst = max(worst, _check_steps(ours, HEAD if rows_out else name, want.T if rows_out else want, form))
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


def _check_steps(ours: Any, name: str, want: F32, form: Precision) -> float:
    """Matrix [in,out] within half a step; steps no wider than the largest value needs. Returns the worst, in steps."""
    worst = 0.0
    for rows in _blocks(want):
        values, step = READERS[form.matmul](ours, name, rows, want)
        error = np.abs(values - want[rows]) / step
        worst = max(worst, float(error.max()))
        if not worst <= HALF:
            at = rows.start + int(error.max(axis=1).argmax())
            raise departed("weights", "file", name, worst, 0.5, "steps", f"input {at}")
    return worst


def _int8(ours: Any, name: str, rows: slice, want: F32) -> tuple[F32, F32]:
    """Values and step of rows: one scale an output channel."""
    scale = ours.get_tensor(f"{name}.scale")
    _check_scale(name, scale, np.abs(want).max(axis=0), 127)
    return ours.get_slice(f"{name}.int8")[rows].astype(np.float32) * scale, scale


def _check_scale(name: str, scale: F32, largest: F32, top: float) -> None:
    """A scale wider than the largest value needs would let any error pass as half a step."""
    wide = (scale > largest / top * (1 + 1e-5)) & (largest > 0)
    if wide.any():
        channel = int(wide.argmax())
        where = f"channel {channel} has step {scale[channel]:.4g}, its largest value needs {largest[channel] / top:.4g}"
        raise departed("weights", "file", f"{name}.scale", None, None, "", where)


READERS: Final = {"int8": _int8}


def _blocks(array: Array) -> Iterator[slice]:
    """Rows of ``array``, about BLOCK elements at a time."""
    step = max(1, BLOCK // max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
