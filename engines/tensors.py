"""Named shapes: what a graph wants, and a check that an array fits it.

A dimension is a number (fixed) or a name (equal wherever the name occurs in one call). This file knows
neither graphs nor engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import LatentError

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph.

    Attributes:
        name: name in the graph.
        dtype: numpy dtype name, such as ``float32``.
        dims: sizes; a string is a size known only at run time.
    """

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the manifest holds."""
        return {"name": self.name, "dtype": self.dtype, "dims": list(self.dims)}

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(str(d) for d in self.dims)}]"


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the manifest holds."""
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}


def check(array: npt.NDArray[Any], spec: TensorSpec, bound: dict[str, int] | None = None) -> None:
    """Raise unless ``array`` has the dtype and shape of ``spec``.

    Args:
        array: what came.
        spec: what was promised.
        bound: sizes of names seen so far in this call; extended here, so that ``B`` means one number
            across several arrays.

    Raises:
        LatentError: 3002, wrong dtype, rank or size.
    """
    sizes = {} if bound is None else bound
    fits = array.dtype == np.dtype(spec.dtype) and array.ndim == len(spec.dims)
    for dim, size in zip(spec.dims, array.shape, strict=False):
        fits = fits and size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
    if not fits:
        known = {n: s for n, s in sizes.items() if n in spec.dims}
        raise LatentError(
            3002,
            "array has another shape or dtype than declared",
            where=f"tensor {spec.name}",
            expected=f"expected {spec}{f' with {known}' if known else ''}, got {array.dtype} {list(array.shape)}",
        )


def check_all(arrays: Mapping[str, npt.NDArray[Any]], specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Check every spec against ``arrays[spec.name]``; returns the sizes of the named dimensions."""
    bound: dict[str, int] = {}
    for spec in specs:
        check(arrays[spec.name], spec, bound)
    return bound
