"""Memory of one running batch on the device that ONNX Runtime computes on.

Everything large stays there. The host holds lengths and tokens; scores and cache are copied when somebody looks
at them. Allocated through ONNX Runtime itself, so that no other package is needed; ``cpu`` runs the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..core.errors import LatentError
from .base import F32, I64
from .buffers import GUARD, SENTINEL, Buffers, cache_dtype, cache_names
from .manifest import LlmInfo
from .ort_session import guarded

ELEMENT_TYPES: Final[dict[str, int]] = {"float32": 1, "float16": 10, "bfloat16": 16, "int32": 6, "int64": 7}
"""ONNX element types by numpy name."""
ITEM_BYTES: Final[dict[str, int]] = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Place:
    """A device of ONNX Runtime: ``cpu`` or ``cuda``, and its number."""

    kind: str
    index: int

    def empty(self, nbytes: int) -> ort.OrtValue:
        """Memory of undefined content.

        Raises:
            EnvironmentFault: 5003 not enough.
        """
        make = ort.OrtValue.ortvalue_from_shape_and_type
        where = f"{nbytes / 1e6:.0f} MB on {self.kind}:{self.index}"
        value: ort.OrtValue = guarded(lambda: make([nbytes], np.uint8, self.kind, self.index), where)
        return value

    def copy(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """An array on the device; on ``cpu`` it shares the array's memory. Raises as ``empty``."""
        make, where = ort.OrtValue.ortvalue_from_numpy, f"{array.nbytes / 1e6:.0f} MB on {self.kind}:{self.index}"
        value: ort.OrtValue = guarded(lambda: make(array, self.kind, self.index), where)
        return value


@dataclass(frozen=True)
class Region:
    """Rows of one tensor on the device, ``skip`` bytes into a block."""

    block: ort.OrtValue
    skip: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def address(self) -> int:
        """Of the first element."""
        return int(self.block.data_ptr()) + self.skip

    @property
    def nbytes(self) -> int:
        """Size."""
        return int(np.prod(self.shape)) * ITEM_BYTES[self.dtype]

    def rows(self, start: int, stop: int) -> Region:
        """Entries ``start`` to ``stop - 1`` of the first dimension."""
        row = self.nbytes // self.shape[0]
        return Region(self.block, self.skip + start * row, self.dtype, (stop - start, *self.shape[1:]))

    def read(self) -> npt.NDArray[Any]:
        """A copy on the host that cannot be written to: writing would not reach the device."""
        raw: npt.NDArray[np.uint8] = self.block.numpy()[self.skip : self.skip + self.nbytes]
        array = np.array(raw).view(cache_dtype(self.dtype)).reshape(self.shape)
        array.flags.writeable = False
        return array

    def write(self, array: npt.NDArray[Any]) -> None:
        """Set all elements."""
        raw = np.array(self.block.numpy())
        raw[self.skip : self.skip + self.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.block.update_inplace(raw)


class Copies(Mapping[str, npt.NDArray[Any]]):
    """Regions by name; each look is a copy."""

    def __init__(self, regions: Mapping[str, Region]) -> None:
        self.regions = regions

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.regions[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)


class DeviceBuffers(Buffers):
    """See ``Buffers``: ``lengths`` and ``next_token`` lie on the host, the rest on the device, read through copies.

    Attributes:
        regions: where the cache, ``logits``, ``tokens`` and ``embeds`` lie.
        prefill: the binding for whole prompts, made by the engine.
        decode: the binding for single steps, whose addresses never change.
        steps: decodes since the last prefill.
    """

    def __init__(self, lengths: I64, next_token: I64, capacity: int, regions: Mapping[str, Region]) -> None:
        self.batch = len(lengths)
        self.capacity = capacity
        self.lengths = lengths
        self.next_token = next_token
        self.regions = regions
        names = [name for name in regions if name.startswith("past_")]
        self.cache = Copies({name: regions[name] for name in names})
        self.memory = Copies({name: _whole(regions[name]) for name in names})
        self.prefill: Any = None
        self.decode: Any = None
        self.steps = 0

    @property
    def logits(self) -> F32:
        """Float32 [B,V], copied now."""
        return self.regions["logits"].read()

    @logits.setter
    def logits(self, value: F32) -> None:
        self.regions["logits"].write(value)

    @property
    def next_embeds(self) -> F32:
        """Float32 [B,1,H], copied now."""
        return self.regions["embeds"].read()

    @next_embeds.setter
    def next_embeds(self, value: F32) -> None:
        self.regions["embeds"].write(value)

    def feed(self, embeds: F32) -> None:
        """As ``Buffers.feed``."""
        self.regions["embeds"].write(embeds)

    def rows(self, start: int, stop: int) -> DeviceBuffers:
        """As ``Buffers.rows``; bound when first used."""
        if not 0 <= start < stop <= self.batch:
            expected = f"expected a range within 0..{self.batch}, got {start}..{stop}"
            raise LatentError(3002, "no such rows", where="buffers", expected=expected)
        regions = {name: region.rows(start, stop) for name, region in self.regions.items()}
        return DeviceBuffers(self.lengths[start:stop], self.next_token[start:stop], self.capacity, regions)


def device_buffers(llm: LlmInfo, batch: int, capacity: int, place: Place) -> DeviceBuffers:
    """Memory for ``batch`` rows of ``capacity`` slots.

    Raises:
        EnvironmentFault: 5003 not enough memory.
    """
    shape = (batch, llm.num_kv_heads, capacity, llm.head_dim)
    words = sentinels(llm.dtype, int(np.prod(shape)) + 2 * GUARD)
    regions = {}
    for name in cache_names(llm.num_layers):
        block = place.empty(words.nbytes)
        block.update_inplace(words)
        regions[name] = Region(block, GUARD * ITEM_BYTES[llm.dtype], llm.dtype, shape)
    outputs = {
        "logits": ("float32", (batch, llm.vocab_size)),
        "tokens": ("int64", (batch,)),
        "embeds": ("float32", (batch, 1, llm.hidden_size)),
    }
    for name, (dtype, size) in outputs.items():
        region = Region(place.empty(int(np.prod(size)) * ITEM_BYTES[dtype]), 0, dtype, size)
        region.block.update_inplace(np.zeros(region.nbytes, np.uint8))
        regions[name] = region
    return DeviceBuffers(np.zeros(batch, np.int64), np.zeros(batch, np.int64), capacity, regions)


def sentinels(dtype: str, count: int) -> npt.NDArray[np.uint8]:
    """``count`` times SENTINEL, as bytes; bfloat16 is the upper half of float32, so that no package is needed."""
    if dtype == "bfloat16":
        return np.full(count, np.float32(SENTINEL).view(np.uint32) >> 16, np.uint16).view(np.uint8)
    return np.full(count, SENTINEL, dtype).view(np.uint8)


def _whole(region: Region) -> Region:
    """A cache tensor's block with its guard words, flat. A view of rows lies in the same block."""
    item = ITEM_BYTES[region.dtype]
    return Region(region.block, 0, region.dtype, (int(region.block.shape()[0]) // item,))
