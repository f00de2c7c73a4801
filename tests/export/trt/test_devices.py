# ruff: noqa: N802, N815  # names of CUDA's own
"""Device memory: the three ways to have it behave alike, as far as a machine without a GPU can show.

cuda-python's own library is asked where it is installed; elsewhere a stand-in with its calling convention (every
function returns its error code first) moves the bytes on the host.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import EnvironmentFault
from latentwire.engines.trt_cuda import CudaDevice
from latentwire.engines.trt_memory import ALIGNMENT, HostDevice, as_bytes
from latentwire.engines.trt_torch import TorchDevice


class Code(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Attribute(enum.Enum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class Mode(enum.Enum):
    cudaStreamCaptureModeThreadLocal = 1


class Runtime(ModuleType):
    """``cuda.bindings.runtime`` with one GPU, whose memory is the host's; 1 GB of it."""

    cudaError_t, cudaMemcpyKind, cudaDeviceAttr, cudaStreamCaptureMode = Code, Kind, Attribute, Mode
    cudaStreamNonBlocking = 1

    def __init__(self, gpus: int = 1) -> None:
        super().__init__("runtime")
        self.gpus, self.held, self.log = gpus, {}, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> tuple[Any, ...]:
            self.log.append(name)
            found = getattr(self, f"do_{name}", lambda *_: None)(*args)
            return found if isinstance(found, tuple) else (Code.cudaSuccess, found)

        if not name.startswith("cuda"):
            raise AttributeError(name)
        return call

    def do_cudaGetDeviceCount(self) -> Any:
        return self.gpus if self.gpus else (Code.cudaErrorNoDevice, None)

    def do_cudaStreamCreateWithFlags(self, flags: int) -> int:
        return 77

    def do_cudaDeviceGetAttribute(self, attribute: Attribute, device: int) -> int:
        return {75: 12, 76: 0}[attribute.value]

    def do_cudaMalloc(self, size: int) -> Any:
        if size > 1 << 30:
            return Code.cudaErrorMemoryAllocation, None
        raw = np.empty(size + ALIGNMENT, np.uint8)
        address = raw.ctypes.data + -raw.ctypes.data % ALIGNMENT
        self.held[address] = raw
        return address

    def do_cudaFree(self, address: int) -> None:
        del self.held[address]

    def do_cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: int) -> None:
        assert stream == 77
        ctypes.memmove(to, source, size)

    def do_cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        ctypes.memset(address, value, size)

    def do_cudaStreamEndCapture(self, stream: int) -> str:
        return "graph"

    def do_cudaGraphInstantiate(self, graph: str, flags: int) -> str:
        return f"ready {graph}"


def install(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> Runtime:
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    for name, module in (("cuda", ModuleType("cuda")), ("cuda.bindings", bindings)):
        monkeypatch.setitem(sys.modules, name, module)
    return runtime


@pytest.fixture(params=["host", "torch", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "host":
        return HostDevice()
    if request.param == "torch":
        return TorchDevice("cpu")
    install(monkeypatch, Runtime())
    return CudaDevice(0)


def test_bytes_go_and_come_back(device: Any) -> None:
    block = device.alloc(1000)
    assert block.address % ALIGNMENT == 0
    assert block.nbytes == 1000
    device.zero(block)
    device.put(block, np.arange(10, dtype=np.int64), 16)
    found = np.empty(12, np.int64)
    device.get(block, found, 8)
    assert found.tolist() == [0, *range(10), 0]


def test_what_was_recorded_runs_again(device: Any) -> None:
    runs: list[int] = []
    recorded = device.record(lambda: runs.append(1))
    recorded.launch()
    device.wait()
    assert runs


def test_cuda_frees_what_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = install(monkeypatch, Runtime())
    device = CudaDevice(0)
    block = device.alloc(100)
    assert list(runtime.held) == [block.address]
    del block
    assert runtime.held == {}
    assert (device.gpu(), device.stream, device.name) == ("sm_120", 77, "cuda:0")


def test_cuda_records_between_begin_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = install(monkeypatch, Runtime())
    device = CudaDevice(0)
    runtime.log.clear()
    graph = device.record(lambda: runtime.log.append("work"))
    graph.launch()
    assert runtime.log == [
        "cudaStreamSynchronize",
        "cudaStreamBeginCapture",
        "work",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphLaunch",
    ]


def test_cuda_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Runtime())
    with pytest.raises(EnvironmentFault) as caught:
        CudaDevice(0).alloc(2 << 30)
    assert (caught.value.code, caught.value.where) == (5003, "cuda:0")
    assert "2147 MB" in caught.value.expected


@pytest.mark.parametrize(("gpus", "words"), [(0, "cudaErrorNoDevice"), (1, "there are 1 GPUs")])
def test_cuda_without_that_gpu(gpus: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Runtime(gpus))
    with pytest.raises(EnvironmentFault) as caught:
        CudaDevice(gpus)
    assert (caught.value.code, caught.value.expected) == (5001, words)


def test_cuda_itself_without_a_driver() -> None:
    """cuda-python's real library, where it is installed."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentFault) as caught:
        CudaDevice(0)
    assert caught.value.code == 5001
    assert caught.value.expected.startswith("cudaError")


def test_torch_without_that_gpu() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        TorchDevice("cuda:99")
    assert (caught.value.code, caught.value.where) == (5001, "--device cuda:99")


def test_torch_out_of_memory() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        TorchDevice("cpu").alloc(1 << 60)
    assert caught.value.code == 5003


def test_host_out_of_memory() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        HostDevice().alloc(1 << 60)
    assert caught.value.code == 5003


def test_array_with_gaps_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        as_bytes(np.zeros((4, 4))[:, ::2])
