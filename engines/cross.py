"""What a decoder reads of the latents in its layers: keys and values for cross-attention, beside the cache.

The optional part ``cross`` makes them once for a prompt; the decoder reads them at every call, prefill and decode.
In: specs and arrays. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .manifest import Manifest
from .tensors import TensorSpec, check_all

NAMES: Final = ("cross_k", "cross_v", "cross_bias")
"""Outputs of ``cross``, and inputs of a decoder whose layers read latents."""

Cross = Mapping[str, npt.NDArray[np.float32]]
"""The arrays of one batch by name; see ``specs.cross_spec``."""


def cross_inputs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Those inputs of a bundle's decoder; empty where its layers read no latents."""
    decoder = manifest.graphs.get("decoder")
    return tuple(t for t in decoder.inputs if t.name in NAMES) if decoder else ()


def given_to(specs: tuple[TensorSpec, ...], cross: Cross, batch: int) -> dict[str, npt.NDArray[Any]]:
    """The decoder's inputs of one call.

    Args:
        specs: ``cross_inputs`` of the bundle.
        cross: what the part ``cross`` made; empty: no row reads latents.
        batch: B.

    Raises:
        LatentError: 3002 arrays of another batch or another bundle.
    """
    if not specs:
        return {}
    given = dict(cross) or {t.name: np.zeros([_size(d, batch) for d in t.dims], np.float32) for t in specs}
    # The cache's own spec is checked elsewhere; B is one number here as there.
    check_all({**given, "batch": np.zeros(batch, np.int64)}, (TensorSpec("batch", "int64", ("B",)), *specs))
    return given


def _size(dim: int | str, batch: int) -> int:
    """Values of zero in one slot: whatever a position reads there adds nothing."""
    return dim if isinstance(dim, int) else batch if dim == "B" else 1
