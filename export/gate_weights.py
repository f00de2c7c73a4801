"""The gate on weights: every tensor of the bundle's file against the model's own, value by value, in blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..engines.bundle import Bundle
from ..models.folder import ModelFolder
from .families import read_config
from .findings import Finding, departed
from .lora import lora_of
from .precision import Precision, precision
from .quantize import Stored, kind, restore, stored
from .shards import Shards
from .smoothing import read_smoothing
from .weights import HEAD, WeightReader

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

ROOM: Final = 1e-3
"""Half steps that the arithmetic of a scale may add."""
NARROW: Final = {"int8": 254.0, "w8": 255.0, "w4": 15.0, "fp8": 16.0}
"""Half a step is at most the channel's largest magnitude divided by this: wider steps would excuse any error."""


def check_weights(bundle: Bundle, llm: ModelFolder) -> Finding:
    """Plain dtypes hold the model's values, rounded; quantised ones lie within half a step of them.

    The model's values are those that the bundle's LoRA, if it has one, makes of them, shifted as the file says.

    Raises:
        ParityError: 4010, naming the tensor.
        ModelError: 3206, 3207 the model's own weights are unusable.
    """
    form = precision(bundle.manifest.precision)
    config = read_config(llm.config, str(llm.path))
    smoothing = read_smoothing(bundle.file("decoder.safetensors"), config)
    worst = 0.0
    with (
        WeightReader(llm.weights, config, lora_of(bundle)) as reader,
        Shards([bundle.file("decoder.safetensors")]) as ours,
    ):
        for name in reader.sources:
            what = kind(name, tied=config.tied)
            parts = stored(name, reader.shape(name), what, form)
            outputs_first = what in ("head", "tied")
            for at, block in reader.blocks(name):
                rest = parts
                shifted = smoothing.apply(HEAD if outputs_first else name, at, block)
                if parts[0].name == name:
                    _check_plain(ours, parts[0], at, block if what == "tied" else shifted)
                    rest = parts[1:]
                if rest:
                    matrix = (shifted.T if outputs_first else shifted).astype(np.float32)
                    worst = max(worst, _check_steps(ours, HEAD if outputs_first else name, at, matrix, rest, form))
        detail = f"{len(reader.sources)} tensors, matrices as {form.name}"
    if form.matmul == "plain":
        return Finding("weights", "file", "passed", 0.0, 0.0, "values", detail)
    return Finding("weights", "file", "passed", worst, 0.5, "steps", detail)


def _check_plain(ours: Shards, part: Stored, at: int, want: Array) -> None:
    """Output channels from ``at`` on: equal after rounding to the dtype that the file has."""
    have = _slice(ours, part, at, want.shape[part.axis])
    if have.shape != want.shape:
        raise departed("weights", "file", part.name, None, None, "", f"expected {want.shape}, got {have.shape}")
    other = have != want.astype(have.dtype)
    if other.any():
        largest = float(np.abs(have.astype(np.float32) - want.astype(np.float32))[other].max())
        where = f"{int(other.sum())} values from output {at} on, by up to {largest:.3g}"
        raise departed("weights", "file", part.name, float(other.sum()), 0.0, "values", where)


def _check_steps(ours: Shards, name: str, at: int, want: F32, parts: Sequence[Stored], form: Precision) -> float:
    """Columns [in,n] of a matrix, from ``at`` on, within half a step. Returns the worst distance in steps."""
    tensors = {p.name: _slice(ours, p, at, want.shape[1]) for p in parts}
    values, half = restore(name, tensors, want.shape, form)
    largest = np.abs(want).max(axis=0)
    wide = (half.max(axis=0) > largest / NARROW[form.name] * 1.01) & (largest > 0)
    if wide.any():
        column = int(wide.argmax())
        where = f"output {at + column}: half a step is {half[:, column].max():.3g}, values reach {largest[column]:.3g}"
        raise departed("weights", "file", f"{name}.scale", None, None, "", where)
    error = np.abs(values - want) / half
    worst = float(error.max()) / 2
    if not worst <= 0.5 + ROOM:
        where = f"output {at + int(error.max(axis=0).argmax())}"
        raise departed("weights", "file", name, worst, 0.5, "steps", where)
    return worst


def _slice(ours: Shards, part: Stored, at: int, count: int) -> Array:
    """Read, not mapped: the library maps files into memory, and its numpy side does not know float8."""
    if part.name not in ours.held:
        raise departed("weights", "file", part.name, None, None, "", "not in the file")
    place = ours.held[part.name].place
    if (place.dtype, place.shape) != (part.dtype, part.shape):
        where = f"expected {part.dtype} {list(part.shape)}, got {place.dtype} {list(place.shape)}"
        raise departed("weights", "file", part.name, None, None, "", where)
    return ours.part(part.name, part.axis, at, count)
