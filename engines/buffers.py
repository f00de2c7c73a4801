"""Static memory of one running batch, with guard words around the cache.

Allocated once, reused by every prefill and decode: a decoder's ``present`` outputs are written to the very
addresses of its ``past`` inputs. Knows no engine; any engine on the CPU can use these arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentFault, LatentError
from ..core.extras import needs
from .cross import Cross
from .manifest import LlmInfo

GUARD: Final = 64
"""Elements before and after each cache tensor that nothing may write to."""
SENTINEL: Final = 1232.0
"""Value of guard elements and of cache slots nobody has written yet; finite, and exact in every float type: 77 x 16."""


@dataclass
class Buffers:
    """One batch's memory; made by ``Engine.alloc``, reused by every call.

    Attributes:
        batch: B, rows.
        capacity: C, cache slots a row; prompt and answer together must fit.
        lengths: int64 [B], true tokens in the cache of each row.
        next_token: int64 [B], greedy choice after the last call.
        next_embeds: float32 [B,1,H], its embedding: the decoder's next input.
        logits: float32 [B,V], scores after the last call.
        cache: ``past_k.0``, ``past_v.0`` and so on: [B,Hkv,C,D] each, views into ``memory``.
        memory: the same names: flat arrays with GUARD elements at either end.
        cross: what the part ``cross`` made of the rows' latents, for every call until it is replaced; empty: nothing.
    """

    batch: int
    capacity: int
    lengths: npt.NDArray[np.int64]
    next_token: npt.NDArray[np.int64]
    next_embeds: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    cache: Mapping[str, npt.NDArray[Any]]
    memory: Mapping[str, npt.NDArray[Any]]
    cross: Cross = field(default_factory=dict)

    def feed(self, embeds: npt.NDArray[np.float32]) -> None:
        """Let the next ``decode`` read float32 [B,1,H] instead of the last token's embedding, wherever that lies."""
        self.next_embeds[...] = embeds

    def rows(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop - 1`` as a batch of their own, in the same memory.

        ``engine.prefill(buffers.rows(2, 3), ...)`` gives row 2 a new prompt while its neighbours keep theirs:
        rows lead every layout, so that a range of them is one block. A row that is done and not refilled
        still takes part in ``decode``; set ``lengths[row] = 1`` now and then, so that it never runs out of slots.
        The view sees the whole memory's guard words.

        Raises:
            LatentError: 3002 an empty range, or one outside the batch.
        """
        if not 0 <= start < stop <= self.batch:
            expected = f"expected a range within 0..{self.batch}, got {start}..{stop}"
            raise LatentError(3002, "no such rows", where="buffers", expected=expected)
        part = slice(start, stop)
        return replace(
            self,
            batch=stop - start,
            lengths=self.lengths[part],
            next_token=self.next_token[part],
            next_embeds=self.next_embeds[part],
            logits=self.logits[part],
            cache={name: cache[part] for name, cache in self.cache.items()},
            cross={name: array[part] for name, array in self.cross.items()},
        )

    def check_guards(self) -> None:
        """Raise LatentError 3002 when an element outside the cache was written; names the tensor."""
        for name, flat in self.memory.items():
            if not (np.all(flat[:GUARD] == SENTINEL) and np.all(flat[-GUARD:] == SENTINEL)):
                raise LatentError(3002, "something wrote outside the key/value cache", where=f"tensor {name}")


def decoder_inputs(
    written: npt.NDArray[np.int64], embeds: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """The decoder's inputs besides the cache, for one call.

    Every row's key/value length is write index + S, padding included: causality is aligned to the last
    position of the call, so a padded row's true queries would otherwise look past themselves. The cache takes
    all S positions; the next call overwrites the padding.

    Args:
        written: int64 [B], slots that hold something already.
        embeds: float32 [B,S,H].
        lengths: int64 [B], how many of the S positions are true.
    """
    new = embeds.shape[1]
    return {
        "inputs_embeds": np.ascontiguousarray(embeds),
        "position_ids": written[:, None] + np.arange(new, dtype=np.int64),
        "write_indices": written.copy(),
        "kv_lengths": (written + new).astype(np.int32),
        "last_index": lengths - 1,
    }


def cache_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of ``float32``, ``float16`` or ``bfloat16``; numpy learns the last one from ml_dtypes.

    Raises:
        EnvironmentFault: 5011 ml_dtypes is not installed.
    """
    if name == "bfloat16":
        with needs("export"):
            import ml_dtypes
        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


def cache_names(layers: int) -> list[str]:
    """``past_k.0``, ``past_v.0``, ``past_k.1``, ... in graph order."""
    return [f"past_{kv}.{i}" for i in range(layers) for kv in "kv"]


def alloc_buffers(llm: LlmInfo, batch: int, capacity: int, dtype: str = "float32") -> Buffers:
    """Memory for ``batch`` rows of ``capacity`` slots: 2 x layers x Hkv x D elements a slot.

    Args:
        llm: sizes of the model.
        batch: B.
        capacity: C.
        dtype: numpy dtype of the cache.

    Raises:
        EnvironmentFault: 5003 not enough memory.
    """
    shape = (batch, llm.num_kv_heads, capacity, llm.head_dim)
    size, kind = int(np.prod(shape)), cache_dtype(dtype)
    try:
        memory = {n: np.full(size + 2 * GUARD, SENTINEL, kind) for n in cache_names(llm.num_layers)}
        return Buffers(
            batch,
            capacity,
            np.zeros(batch, np.int64),
            np.zeros(batch, np.int64),
            np.zeros((batch, 1, llm.hidden_size), np.float32),
            np.zeros((batch, llm.vocab_size), np.float32),
            {name: flat[GUARD:-GUARD].reshape(shape) for name, flat in memory.items()},
            memory,
        )
    except MemoryError as e:
        raise EnvironmentFault(
            5003,
            "not enough memory for the key/value cache",
            where=f"batch {batch}, capacity {capacity}",
            expected=f"needed {2 * llm.num_layers * size * kind.itemsize / 1e6:.0f} MB",
            fix="use a smaller batch",
        ) from e
