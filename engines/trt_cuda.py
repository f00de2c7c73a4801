"""``trt_memory.Device`` on top of NVIDIA's cuda-python, for machines without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..core.errors import EnvironmentFault
from ..core.extras import needs
from .trt_memory import Block, Recorded, as_bytes, out_of_memory


class CudaDevice:
    """See ``trt_memory.Device``.

    Args:
        ordinal: number of the GPU.

    Raises:
        EnvironmentFault: 5001 no such GPU or no driver; 5011 cuda-python is not installed.
    """

    def __init__(self, ordinal: int) -> None:
        with needs("tensorrt"):
            from cuda.bindings import runtime
        self.name = f"cuda:{ordinal}"
        self._cuda: Any = runtime
        self._ordinal = ordinal
        try:
            count = self._call("cudaGetDeviceCount")
            if ordinal >= count:
                raise EnvironmentFault(5001, "no such device", expected=f"there are {count} GPUs")
            self._call("cudaSetDevice", ordinal)
            self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        except EnvironmentFault as e:
            raise EnvironmentFault(
                5001,
                "no such device",
                where=f"--device {self.name}",
                expected=e.expected,
                fix="check nvidia-smi; --device cpu runs without a GPU",
            ) from e
        self.stream = int(self._stream)

    def gpu(self) -> str:
        """As ``Device.gpu``."""
        attribute = self._cuda.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, self._ordinal)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, self._ordinal)
        return f"sm_{major}{minor}"

    def alloc(self, nbytes: int) -> Block:
        """As ``Device.alloc``. cudaMalloc aligns to 256 bytes."""
        address = int(self._call("cudaMalloc", nbytes, need=nbytes))
        return Block(address, nbytes, _Owner(self._cuda, address))

    def zero(self, block: Block) -> None:
        """As ``Device.zero``."""
        self._call("cudaMemsetAsync", block.address, 0, block.nbytes, self._stream)

    def put(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.put``. From pageable memory: CUDA returns when the array may change."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        host = as_bytes(array)
        self._call("cudaMemcpyAsync", block.address + offset, host.ctypes.data, host.nbytes, kind, self._stream)

    def get(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.get``."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        host = as_bytes(array)
        self._call("cudaMemcpyAsync", host.ctypes.data, block.address + offset, host.nbytes, kind, self._stream)
        self.wait()

    def record(self, work: Callable[[], None]) -> Recorded:
        """As ``Device.record``: a CUDA graph."""
        self.wait()
        self._call(
            "cudaStreamBeginCapture", self._stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self._stream)
        return _Graph(self, self._call("cudaGraphInstantiate", graph, 0))

    def wait(self) -> None:
        """As ``Device.wait``."""
        self._call("cudaStreamSynchronize", self._stream)

    def launch(self, graph: Any) -> None:
        """Put an instantiated graph on the stream."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def _call(self, name: str, *args: Any, need: int = 0) -> Any:
        """One function of the runtime; its error code becomes an exception."""
        error, *found = getattr(self._cuda, name)(*args)
        if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise out_of_memory(need, self.name, name)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise EnvironmentFault(5001, "CUDA failed", where=f"{name} on {self.name}", expected=error.name)
        return found[0] if found else None


@dataclass(frozen=True)
class _Graph:
    device: CudaDevice
    graph: Any

    def launch(self) -> None:
        """As ``Recorded.launch``."""
        self.device.launch(self.graph)


class _Owner:
    """Frees an allocation with its last reference."""

    def __init__(self, cuda: Any, address: int) -> None:
        self._cuda, self._address = cuda, address

    def __del__(self) -> None:
        self._cuda.cudaFree(self._address)
