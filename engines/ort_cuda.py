"""ONNX Runtime on a GPU: the cache stays on the device, single steps are replayed as CUDA graphs.

The class knows its device as a name only; on ``cpu`` it runs the same protocol without a GPU, which is how it is
tested. It has not run on a GPU yet.

``next_embeds`` is written to the memory it is read from. Nothing is lost: every node that reads the decoder's
input comes before the token it decides, and that before its embedding.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..core.errors import BundleError, EnvironmentFault
from .base import F32, I64, PARTS
from .buffers import Buffers, decoder_inputs
from .bundle import Bundle
from .checks import check_decode, check_prefill, finite, fitted_capacity
from .ort_device import ELEMENT_TYPES, DeviceBuffers, Place, Region, device_buffers
from .ort_parts import OrtParts
from .ort_session import CPU, FATAL, Providers, guarded, open_session

CHECK_EVERY: Final = 16
"""Decode steps between two looks at all scores, which are megabytes: NaN in a cache stays there, so none is missed
for long."""
NO_GRAPH: Final = "-1"
"""ONNX Runtime's number for a run that is neither captured nor replayed."""

REFUSED: Final = "cannot use the graph capture feature"
"""What ONNX Runtime says of a graph that it cannot capture."""

OUTPUTS: Final = {"logits": "logits", "next_token": "tokens", "next_embeds": "embeds"}
"""Decoder output -> region."""


class OrtCudaEngine(OrtParts):
    """See ``base.Engine``.

    Args:
        bundle: verified bundle.
        device: ``cuda``, ``cuda:1``; ``cpu`` for tests.
        threads: computing threads of what runs on the host; None: every processor this process may use.
        parts: graphs that may be used.
        graphs: replay decode steps as CUDA graphs where ONNX Runtime can.

    Raises:
        EnvironmentFault: 5001 no such GPU, or ONNX Runtime was built without CUDA.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cuda",
        threads: int | None = None,
        parts: Collection[str] = PARTS,
        graphs: bool = True,
    ) -> None:
        self.place = place_of(device)
        super().__init__(bundle, threads=threads, parts=parts, providers=providers(self.place, False))
        self.name = f"ort-{self.place.kind}"
        self.graphs = graphs and self.place.kind == "cuda"
        self._captured = 0

    def alloc(self, batch: int, capacity: int) -> DeviceBuffers:
        """As ``base.Engine.alloc``."""
        manifest = self.bundle.manifest
        return device_buffers(manifest.llm, batch, fitted_capacity(batch, capacity, manifest), self.place)

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.prefill``."""
        check_prefill(buffers.batch, buffers.capacity, inputs_embeds, lengths, self.bundle.manifest.llm.hidden_size)
        held = _own(buffers)
        held.lengths[:] = 0
        held.steps = 0
        if held.prefill is None:
            held.prefill = self._bind(held)
        for name, array in decoder_inputs(held.lengths, inputs_embeds, lengths).items():
            held.prefill.bind_ortvalue_input(name, self.place.copy(array))
        self._run_bound(held.prefill, NO_GRAPH)
        self._finish(held, lengths)
        finite(held.logits, "logits", self.name)

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``; NaN is looked for every CHECK_EVERY steps."""
        check_decode(buffers.lengths, buffers.capacity)
        held = _own(buffers)
        small = _small(held.lengths)
        if held.decode is None:
            held.decode = _Steps(self._bind(held), self.place, held.regions["embeds"], small, self._captured)
            self._captured += 1
        held.decode.update(small)
        self._run_bound(held.decode.binding, held.decode.graph)
        self._finish(held, np.ones(held.batch, np.int64))
        held.steps += 1
        if held.steps % CHECK_EVERY == 0:
            finite(held.logits, "logits", self.name)

    def _bind(self, buffers: DeviceBuffers) -> Any:
        """A binding with all fixed addresses: the cache as input and output, and the results."""
        binding = self.session("decoder").io_binding()
        for present, past in self.aliases().items():
            bind_input(binding, self.place, past, buffers.regions[past])
            bind_output(binding, self.place, present, buffers.regions[past])
        for output, region in OUTPUTS.items():
            bind_output(binding, self.place, output, buffers.regions[region])
        return binding

    def _run_bound(self, binding: Any, graph: str) -> None:
        options = ort.RunOptions()
        if self.graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        guarded(lambda: self.session("decoder").run_with_iobinding(binding, options), "decoder")

    def _finish(self, buffers: DeviceBuffers, lengths: I64) -> None:
        buffers.next_token[:] = buffers.regions["tokens"].read()
        buffers.lengths += lengths

    def _open(self, part: str) -> ort.InferenceSession:
        session = self._open_decoder() if part == "decoder" else super()._open(part)
        wanted = self._providers[0][0]
        if session.get_providers()[0] != wanted:
            raise EnvironmentFault(
                5001,
                "ONNX Runtime could not start its GPU provider",
                where=f"--device {self.place.kind}:{self.place.index}",
                expected=f"expected {wanted}, got {session.get_providers()[0]}",
                fix="install the NVIDIA driver, and CUDA and cuDNN of the versions that onnxruntime-gpu wants",
            )
        return session

    def _open_decoder(self) -> ort.InferenceSession:
        """With CUDA graphs, unless ONNX Runtime would leave a node on the host, as it does in the flavour ``gqa``."""
        path = self.bundle.file("decoder.onnx")
        if self.graphs:
            try:
                # It logs as an error what is only a reason to do without.
                return open_session(path, self.threads, providers=providers(self.place, True), severity=FATAL)
            except BundleError as e:
                if REFUSED not in e.expected:
                    raise
                self.graphs = False
        return open_session(path, self.threads, providers=self._providers)


class _Steps:
    """The decode binding of one batch: small inputs at fixed addresses, renewed in place."""

    def __init__(
        self, binding: Any, place: Place, embeds: Region, small: Mapping[str, npt.NDArray[Any]], graph: int
    ) -> None:
        self.binding = binding
        self.graph = str(graph)
        self.inputs = {name: place.copy(array.copy()) for name, array in small.items()}
        bind_input(binding, place, "inputs_embeds", embeds)
        for name, value in self.inputs.items():
            binding.bind_ortvalue_input(name, value)

    def update(self, small: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in small.items():
            self.inputs[name].update_inplace(array)


def _small(lengths: I64) -> dict[str, npt.NDArray[Any]]:
    """The inputs of one step besides embeddings and cache."""
    batch = len(lengths)
    found = decoder_inputs(lengths, np.zeros((batch, 1, 0), np.float32), np.ones(batch, np.int64))
    del found["inputs_embeds"]
    return found


def _own(buffers: Buffers) -> DeviceBuffers:
    if not isinstance(buffers, DeviceBuffers):
        raise TypeError("buffers of another engine")
    return buffers


def bind_input(binding: Any, place: Place, name: str, region: Region) -> None:
    """By address, as the element type that the graph reads."""
    kind = ELEMENT_TYPES[region.dtype]
    binding.bind_input(name, place.kind, place.index, kind, list(region.shape), region.address)


def bind_output(binding: Any, place: Place, name: str, region: Region) -> None:
    """By address."""
    kind = ELEMENT_TYPES[region.dtype]
    binding.bind_output(name, place.kind, place.index, kind, list(region.shape), region.address)


def place_of(device: str) -> Place:
    """``cpu``, ``cuda`` or ``cuda:N``, if ONNX Runtime has it.

    Raises:
        EnvironmentFault: 5001 another name, or a build of ONNX Runtime without CUDA.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return Place("cpu", 0)
    if kind != "cuda" or not (index or "0").isdecimal():
        raise EnvironmentFault(
            5001, "no such device", where=f"--device {device}", expected="expected cpu, cuda or cuda:N"
        )
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise EnvironmentFault(
            5001,
            "this build of ONNX Runtime has no CUDA",
            where=f"--device {device}",
            expected=f"onnxruntime {ort.__version__} has {', '.join(ort.get_available_providers())}",
            # Both packages hold the same files: the CPU one must go first.
            fix="pip uninstall onnxruntime; pip install onnxruntime-gpu",
        )
    if hasattr(ort, "preload_dlls"):
        # Finds CUDA and cuDNN among installed Python packages; what it prints when it finds none, our error says.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    return Place("cuda", int(index or 0))


def providers(place: Place, graphs: bool) -> Providers:
    """ONNX Runtime's providers for a place; float32 means float32, not TF32."""
    if place.kind == "cpu":
        return CPU
    settings: dict[str, Any] = {
        "device_id": str(place.index),
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1" if graphs else "0",
    }
    return (("CUDAExecutionProvider", settings), *CPU)
