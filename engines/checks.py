"""Checks that every engine makes on what it is given and on what its model returns.

Arrays in, ``LatentError`` out or nothing. Which engine calls them does not matter here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import BundleError, LatentError
from .base import I64
from .bundle import Bundle
from .manifest import LlmInfo, Manifest


def finite(array: npt.NDArray[Any], what: str, engine: str) -> None:
    """Raise LatentError 3001 when ``array`` holds NaN or infinity; names the first row [0-based]."""
    # The sum is finite unless an element is not, or huge ones overflow: then look closely. In float32, because numpy
    # would convert piece by piece to anything wider, for four times as long.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(array, dtype=np.float32)
    if np.isfinite(total):
        return
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise LatentError(
            3001,
            "the model produced NaN or infinity",
            where=f"{what} of engine {engine}, batch row {int(np.argmax(bad))}",
            expected=f"expected finite numbers, got {int(bad.sum())} bad rows of {len(bad)}",
            fix="check the text of that row and the bundle's weights",
        )


def filled(latents: npt.NDArray[Any]) -> I64:
    """How many latents each row of [B,M,d_z] has: a slot without one is all zero, and such slots come last."""
    count: I64 = np.any(latents, axis=2).sum(axis=1).astype(np.int64)
    return count


WITHOUT: Final = {
    "prefix": "bundle puts nothing into the cache",
    "cross": "no layer of this bundle's decoder reads latents",
}
"""What is said of a bundle without such a part."""


def optional_part(bundle: Bundle, part: str) -> str:
    """``part``, or BundleError 4008 where the bundle's checkpoint was trained without it."""
    if part not in bundle.manifest.graphs:
        if part in WITHOUT:
            raise BundleError(4008, WITHOUT[part], where=str(bundle.path), expected=f"a part {part}")
        raise BundleError(
            4008,
            "bundle has no quantiser",
            where=str(bundle.path),
            expected=f"expected a graph {part}, got {', '.join(sorted(bundle.manifest.graphs))}",
            fix="use codec i8 or f16, or a checkpoint that was trained with fsq_profile",
        )
    return part


def check_lengths(lengths: I64, batch: int, longest: int, what: str) -> None:
    """Raise LatentError 3002 unless ``lengths`` is int64 [batch] within 1..longest."""
    ok = lengths.dtype == np.int64 and lengths.shape == (batch,)
    if not ok or (batch and (int(lengths.min()) < 1 or int(lengths.max()) > longest)):
        got = f"{lengths.dtype} {list(lengths.shape)}"
        if ok:
            got = f"values {int(lengths.min())}..{int(lengths.max())}"
        raise LatentError(
            3002,
            "lengths do not fit the batch",
            where=what,
            expected=f"expected int64 [{batch}] within 1..{longest}, got {got}",
        )


def check_splice(input_ids: I64, row_index: I64, rows: int, vocab: int) -> None:
    """Raise LatentError 3002 for an id outside 0..vocab-1 or a row outside -1..rows-1."""
    for name, array, low, high in (("input_ids", input_ids, 0, vocab - 1), ("row_index", row_index, -1, rows - 1)):
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            raise LatentError(
                3002,
                "index outside its table",
                where=f"tensor {name}",
                expected=f"expected {low}..{high}, got {int(array.min())}..{int(array.max())}",
            )


def check_alloc(batch: int, capacity: int, llm: LlmInfo) -> None:
    """Raise LatentError 3002 for a batch below 1 or a capacity the LLM has no positions for."""
    if batch < 1 or not 1 <= capacity <= llm.max_positions:
        raise LatentError(
            3002,
            "batch or cache capacity out of range",
            where=f"batch {batch}, capacity {capacity}",
            expected=f"expected a batch of at least 1 and a capacity of 1..{llm.max_positions}",
        )


def fitted_capacity(batch: int, capacity: int, manifest: Manifest) -> int:
    """Cache slots to allocate: ``capacity``, or the number that the decoder's graph is fixed to.

    Raises:
        LatentError: 3002 as ``check_alloc``, or more slots than the graph has.
    """
    check_alloc(batch, capacity, manifest.llm)
    if not manifest.capacity:
        return capacity
    if capacity > manifest.capacity:
        raise LatentError(
            3002,
            "prompt and answer do not fit the bundle's fixed cache",
            where=f"batch {batch}",
            expected=f"expected at most {manifest.capacity} slots a row, got {capacity}",
            fix="shorten prompt or answer, or export with a larger capacity",
        )
    return manifest.capacity


def check_prefill(batch: int, capacity: int, inputs_embeds: npt.NDArray[Any], lengths: I64, hidden: int) -> None:
    """Raise LatentError 3002 unless ``inputs_embeds`` is float32 [batch,T,hidden] with T <= capacity."""
    shape = inputs_embeds.shape
    fits = len(shape) == 3 and shape[0] == batch and 1 <= shape[1] <= capacity and shape[2] == hidden
    if inputs_embeds.dtype != np.float32 or not fits:
        raise LatentError(
            3002,
            "prompts do not fit the buffers",
            where="tensor inputs_embeds",
            expected=f"expected float32 [{batch}, 1..{capacity}, {hidden}], got {inputs_embeds.dtype} {list(shape)}",
            fix="allocate a larger capacity, or send shorter prompts",
        )
    check_lengths(lengths, batch, shape[1], "prompt lengths")


def check_extend(
    lengths: I64, capacity: int, inputs_embeds: npt.NDArray[Any], new: I64, hidden: int, batch: int
) -> None:
    """As ``check_prefill`` for positions behind ``lengths`` int64 [batch]; LatentError 3002."""
    check_prefill(batch, capacity, inputs_embeds, new, hidden)
    end = int(lengths.max()) + inputs_embeds.shape[1]
    if end > capacity:
        raise LatentError(
            3002,
            "prompts do not fit behind what the cache holds",
            where=f"batch row {int(lengths.argmax())}",
            expected=f"expected at most {capacity} slots, padding included, got {end}",
            fix="allocate a larger capacity, or send shorter prompts",
        )


def check_decode(lengths: I64, capacity: int) -> None:
    """Raise LatentError 3002 when a row was not prefilled or has no free cache slot."""
    if int(lengths.min()) < 1 or int(lengths.max()) >= capacity:
        raise LatentError(
            3002,
            "a row has no free cache slot" if int(lengths.max()) >= capacity else "decode before prefill",
            where=f"batch row {int(lengths.argmax())}",
            expected=f"expected lengths within 1..{capacity - 1}, got {int(lengths.min())}..{int(lengths.max())}",
            fix="allocate a larger capacity or stop earlier",
        )
