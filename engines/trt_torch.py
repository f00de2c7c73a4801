"""``trt_memory.Device`` on top of torch, which most machines with a GPU have anyway."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..core.errors import EnvironmentFault
from .trt_memory import ALIGNMENT, Block, Recorded, as_bytes, out_of_memory

if TYPE_CHECKING:
    import torch


def sees_gpu() -> bool:
    """torch is built for CUDA and finds a GPU."""
    import torch

    return torch.cuda.is_available()


class TorchDevice:
    """See ``trt_memory.Device``.

    Args:
        name: ``cuda:0``; ``cpu`` runs the same copies without a GPU and records nothing.

    Raises:
        EnvironmentFault: 5001 torch sees no such GPU.
    """

    def __init__(self, name: str) -> None:
        import torch

        self.name = name
        self._torch = torch
        self._device = torch.device(name)
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise EnvironmentFault(
                5001,
                "no such device",
                where=f"--device {name}",
                expected=f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
                fix="check nvidia-smi; --device cpu runs without a GPU",
            )
        self._stream: Any = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.stream = int(self._stream.cuda_stream) if self._stream is not None else 0

    def gpu(self) -> str:
        """As ``Device.gpu``."""
        if self._stream is None:
            return "none"
        major, minor = self._torch.cuda.get_device_capability(self._device)
        return f"sm_{major}{minor}"

    def alloc(self, nbytes: int) -> Block:
        """As ``Device.alloc``."""
        try:
            raw = self._torch.empty(nbytes + ALIGNMENT, dtype=self._torch.uint8, device=self._device)
        except RuntimeError as e:  # torch.OutOfMemoryError is one; on the CPU it has no class of its own
            if "memory" not in str(e):
                raise
            raise out_of_memory(nbytes, self.name, str(e)) from e
        start = -raw.data_ptr() % ALIGNMENT
        view = raw[start : start + nbytes]
        return Block(view.data_ptr(), nbytes, view)

    def zero(self, block: Block) -> None:
        """As ``Device.zero``."""
        with self._on_stream():
            block.owner.zero_()

    def put(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.put``. From pageable memory CUDA returns when the array may change, without waiting longer."""
        with self._on_stream():
            self._slice(block, array, offset).copy_(self._torch.from_numpy(as_bytes(array)), non_blocking=True)

    def get(self, block: Block, array: npt.NDArray[Any], offset: int = 0) -> None:
        """As ``Device.get``."""
        with self._on_stream():
            self._torch.from_numpy(as_bytes(array)).copy_(self._slice(block, array, offset))
        self.wait()

    def record(self, work: Callable[[], None]) -> Recorded:
        """As ``Device.record``: a CUDA graph."""
        if self._stream is None:
            return _Again(work)
        graph = self._torch.cuda.CUDAGraph()
        self.wait()
        with self._torch.cuda.graph(graph, stream=self._stream):
            work()
        return _Graph(graph, self._on_stream)

    def wait(self) -> None:
        """As ``Device.wait``."""
        if self._stream is not None:
            self._stream.synchronize()

    def _slice(self, block: Block, array: npt.NDArray[Any], offset: int) -> torch.Tensor:
        found: torch.Tensor = block.owner[offset : offset + array.nbytes]
        return found

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream)


class _Again:
    def __init__(self, work: Callable[[], None]) -> None:
        self.launch = work


class _Graph:
    def __init__(self, graph: Any, on_stream: Callable[[], AbstractContextManager[Any]]) -> None:
        self._graph, self._on_stream = graph, on_stream

    def launch(self) -> None:
        """As ``Recorded.launch``."""
        with self._on_stream():
            self._graph.replay()
