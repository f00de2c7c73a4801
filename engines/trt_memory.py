"""Memory and streams of the device that TensorRT computes on, behind one small protocol.

TensorRT takes addresses. Who allocates behind them is decided here: torch where it is installed, else NVIDIA's
cuda-python, and plain host memory for tests, which run the whole protocol without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentFault

ALIGNMENT: Final = 256
"""Bytes; TensorRT wants every address to be a multiple of this."""


@dataclass(frozen=True)
class Block:
    """A piece of device memory.

    Attributes:
        address: first byte, a multiple of ALIGNMENT.
        nbytes: size.
        owner: what keeps the memory alive.
    """

    address: int
    nbytes: int
    owner: Any


class Recorded(Protocol):
    """Work recorded once, such as a CUDA graph; it reads and writes the same addresses every time."""

    def launch(self) -> None:
        """Put the work on the stream again."""
        ...


class Device(Protocol):
    """One device and one stream on it. Everything below is ordered on that stream."""

    name: str
    """``cuda:0``, ``host``."""
    stream: int
    """Handle for ``execute_async_v3``."""

    def gpu(self) -> str:
        """Compute capability, such as ``sm_89``."""
        ...

    def alloc(self, nbytes: int) -> Block:
        """New memory of undefined content.

        Raises:
            EnvironmentFault: 5003 not enough.
        """
        ...

    def zero(self, block: Block) -> None:
        """Set every byte of ``block`` to 0."""
        ...

    def put(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """Copy a contiguous host array to ``block`` from byte ``offset`` on; the array may change afterwards."""
        ...

    def get(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """Copy from ``block`` into a contiguous host array, after all work so far is done."""
        ...

    def record(self, work: Callable[[], None]) -> Recorded:
        """Record what ``work`` puts on the stream, without running it."""
        ...

    def wait(self) -> None:
        """Until all work so far is done."""
        ...


def open_device(ordinal: int = 0) -> Device:
    """The GPU of this number, through torch or cuda-python, whichever is installed.

    Raises:
        EnvironmentFault: 5001 no such GPU or no driver; 5011 neither package is installed.
    """
    from importlib.util import find_spec

    has_torch = find_spec("torch") is not None
    if find_spec("cuda") is not None and find_spec("cuda.bindings") is not None and not (has_torch and _torch_sees()):
        from .trt_cuda import CudaDevice

        return CudaDevice(ordinal)
    if has_torch:
        from .trt_torch import TorchDevice

        return TorchDevice(f"cuda:{ordinal}")
    raise EnvironmentFault(
        5011, "package not installed", where="torch or cuda-bindings", fix="pip install 'cuda-bindings>=13', or torch"
    )


def _torch_sees() -> bool:
    """torch is built for CUDA and finds a GPU."""
    from .trt_torch import sees_gpu

    return sees_gpu()


def as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A contiguous array as its bytes, without a copy."""
    if not array.flags.c_contiguous:
        raise ValueError("expected a contiguous array")
    return array.reshape(-1).view(np.uint8)


def out_of_memory(nbytes: int, device: str, reason: str = "") -> EnvironmentFault:
    """The one error for lack of device memory."""
    return EnvironmentFault(
        5003,
        "not enough memory",
        where=device,
        expected=f"needed {nbytes / 1e6:.0f} MB more{f': {reason[:200]}' if reason else ''}",
        fix="use a smaller batch",
    )


class HostDevice:
    """Host memory that takes the place of a GPU's in tests. See ``Device``."""

    def __init__(self, gpu: str = "sm_89") -> None:
        self.name = "host"
        self.stream = 0
        self._gpu = gpu

    def gpu(self) -> str:
        """As ``Device.gpu``: what the constructor was told."""
        return self._gpu

    def alloc(self, nbytes: int) -> Block:
        """As ``Device.alloc``."""
        try:
            raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        except MemoryError as e:
            raise out_of_memory(nbytes, self.name) from e
        start = -raw.ctypes.data % ALIGNMENT
        view = raw[start : start + nbytes]
        return Block(view.ctypes.data, nbytes, view)

    def zero(self, block: Block) -> None:
        """As ``Device.zero``."""
        block.owner[:] = 0

    def put(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.put``."""
        block.owner[offset : offset + array.nbytes] = as_bytes(array)

    def get(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.get``."""
        as_bytes(array)[:] = block.owner[offset : offset + array.nbytes]

    def record(self, work: Callable[[], None]) -> Recorded:
        """As ``Device.record``; each launch calls ``work`` again."""
        return _Again(work)

    def wait(self) -> None:
        """As ``Device.wait``: nothing runs by itself here."""


@dataclass(frozen=True)
class _Again:
    launch: Callable[[], None]
