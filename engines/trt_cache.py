"""A key/value cache on a device: one block for each tensor, guard bytes around it.

The cache never moves. TensorRT gets its addresses; the host gets copies when it asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import LatentError
from .buffers import SENTINEL, cache_dtype, cache_names
from .manifest import LlmInfo
from .trt_memory import ALIGNMENT, Block, Device

GUARD_BYTES: Final = ALIGNMENT
"""Before and after each tensor; what lies between must stay aligned."""
WIDTH: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element."""


@dataclass(frozen=True)
class DeviceCache:
    """Cache of a batch.

    Attributes:
        device: where it lies.
        blocks: ``past_k.0``, ``past_v.0``, ...: guard, [rows,Hkv,C,D], guard.
        shape: [rows,Hkv,C,D].
        dtype: numpy name.
    """

    device: Device
    blocks: Mapping[str, Block]
    shape: tuple[int, int, int, int]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one tensor."""
        return self.shape[1] * self.shape[2] * self.shape[3] * WIDTH[self.dtype]

    def address(self, name: str, row: int = 0) -> int:
        """First byte of a row."""
        return self.blocks[name].address + GUARD_BYTES + row * self.row_bytes

    def read(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        """A copy of some rows: [count,Hkv,C,D]."""
        found = np.empty((count, *self.shape[1:]), cache_dtype(self.dtype))
        self.device.get(self.blocks[name], found.view(np.uint8), GUARD_BYTES + first * self.row_bytes)
        return found

    def read_all(self, name: str) -> npt.NDArray[Any]:
        """A copy of everything, guards included, flat."""
        block = self.blocks[name]
        raw = np.empty(block.nbytes, np.uint8)
        self.device.get(block, raw)
        return raw.view(cache_dtype(self.dtype))

    def check_guards(self) -> None:
        """Raise LatentError 3002 when a byte outside the cache was written; names the tensor."""
        expected = guard_bytes(self.dtype)
        found = np.empty_like(expected)
        for name, block in self.blocks.items():
            for offset in (0, block.nbytes - GUARD_BYTES):
                self.device.get(block, found, offset)
                if not np.array_equal(found, expected):
                    raise LatentError(3002, "something wrote outside the key/value cache", where=f"tensor {name}")


def make_cache(device: Device, llm: LlmInfo, rows: int, capacity: int) -> DeviceCache:
    """Memory for ``rows`` rows of ``capacity`` slots.

    Slots are zero: an attention kernel may multiply what it masks out by 0, and NaN would survive that.

    Raises:
        EnvironmentFault: 5003.
    """
    shape = (rows, llm.num_kv_heads, capacity, llm.head_dim)
    size = int(np.prod(shape)) * WIDTH[llm.dtype]
    guard = guard_bytes(llm.dtype)
    blocks = {}
    for name in cache_names(llm.num_layers):
        blocks[name] = block = device.alloc(size + 2 * GUARD_BYTES)
        device.zero(block)
        device.put(block, guard)
        device.put(block, guard, GUARD_BYTES + size)
    return DeviceCache(device, blocks, shape, llm.dtype)


def guard_bytes(dtype: str) -> npt.NDArray[np.uint8]:
    """GUARD_BYTES of SENTINEL in this dtype; needs no package that knows bfloat16."""
    if dtype == "bfloat16":
        value = np.array([np.float32(SENTINEL).view(np.uint32) >> 16], np.uint16)
    else:
        value = np.array([SENTINEL], dtype)
    return np.tile(value.view(np.uint8), GUARD_BYTES // value.nbytes)


class Copies(Mapping[str, npt.NDArray[Any]]):
    """Cache tensors by name, each copied from the device when looked up."""

    def __init__(self, names: tuple[str, ...], read: Callable[[str], npt.NDArray[Any]]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
