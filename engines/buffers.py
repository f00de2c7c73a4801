"""Static memory of one running batch, with guard words around the cache.

Allocated once, reused by every prefill and decode: a decoder's ``present`` outputs are written to the very
addresses of its ``past`` inputs. Knows no engine; any engine on the CPU can use these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentFault, LatentError
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
    """

    batch: int
    capacity: int
    lengths: npt.NDArray[np.int64]
    next_token: npt.NDArray[np.int64]
    next_embeds: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    cache: dict[str, npt.NDArray[Any]]
    memory: dict[str, npt.NDArray[Any]]

    def check_guards(self) -> None:
        """Raise LatentError 3002 when an element outside the cache was written; names the tensor."""
        for name, flat in self.memory.items():
            if not (np.all(flat[:GUARD] == SENTINEL) and np.all(flat[-GUARD:] == SENTINEL)):
                raise LatentError(3002, "something wrote outside the key/value cache", where=f"tensor {name}")


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
    size = int(np.prod(shape))
    try:
        memory = {n: np.full(size + 2 * GUARD, SENTINEL, dtype) for n in cache_names(llm.num_layers)}
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
            expected=f"needed {2 * llm.num_layers * size * np.dtype(dtype).itemsize / 1e6:.0f} MB",
            fix="use a smaller batch",
        ) from e
