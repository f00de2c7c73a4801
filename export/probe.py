"""A bundle's own decoder with the residual stream of every layer in reach.

What is run is the file that ships: outputs are added to it in memory, nothing else.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import onnx

from ..engines.base import F32, I64, Engine
from ..engines.buffers import Buffers
from ..engines.bundle import Bundle
from ..engines.ort import OrtBuffers, OrtCpuEngine, open_session
from ..engines.torch_ref import TorchRefEngine
from .decoder import HIDDEN
from .graph import ELEMENT_TYPES


class Probe(Engine, Protocol):
    """An engine that also tells what each layer of its last call returned."""

    def hidden(self, buffers: Buffers) -> F32:
        """Residual stream float32 [L+1,B,S,H] of the last call: before layer 0, then after each layer."""
        ...


class ProbeEngine(OrtCpuEngine):
    """The bundle's own decoder with the residual stream of every layer as further outputs."""

    def session(self, part: str) -> Any:
        """As ``OrtCpuEngine.session``; the decoder is opened with more outputs."""
        if part == "decoder" and part not in self._sessions:
            model = onnx.load(str(self.bundle.file("decoder.onnx")), load_external_data=False)
            llm = self.bundle.manifest.llm
            for name in self.hidden_names():
                value = onnx.helper.make_tensor_value_info(name, ELEMENT_TYPES[llm.dtype], ["B", "S", llm.hidden_size])
                model.graph.output.append(value)
            self._sessions[part] = open_session(model.SerializeToString(), self.threads, self.bundle.path)
        return super().session(part)

    def hidden_names(self) -> list[str]:
        """``hidden.0`` to ``hidden.L``."""
        return [HIDDEN.format(i) for i in range(self.bundle.manifest.llm.num_layers + 1)]

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``OrtCpuEngine.prefill``; ``hidden`` has the states afterwards."""
        self._bind_hidden(buffers)
        super().prefill(buffers, inputs_embeds, lengths)

    def extend(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``OrtCpuEngine.extend``; ``hidden`` has the states afterwards."""
        self._bind_hidden(buffers)
        super().extend(buffers, inputs_embeds, lengths)

    def decode(self, buffers: Buffers) -> None:
        """As ``OrtCpuEngine.decode``; ``hidden`` has the states afterwards."""
        self._bind_hidden(buffers)
        super().decode(buffers)

    def _bind_hidden(self, buffers: Buffers) -> None:
        # Again for each call: an output that ONNX Runtime allocated keeps the shape of its first call.
        assert isinstance(buffers, OrtBuffers)
        if buffers.binding is None:
            self._bind(buffers)
        for name in self.hidden_names():
            buffers.binding.bind_output(name, "cpu")

    def hidden(self, buffers: Buffers) -> F32:
        """Float32 [L+1,B,S,H] of the last call."""
        assert isinstance(buffers, OrtBuffers)
        # Bound last, after all that ``alloc`` bound.
        outputs = buffers.binding.get_outputs()[-len(self.hidden_names()) :]
        return np.stack([o.numpy().astype(np.float32) for o in outputs])


class TorchProbe(TorchRefEngine):
    """The reference engine, told to keep the residual stream."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> None:
        self.names = [HIDDEN.format(i) for i in range(bundle.manifest.llm.num_layers + 1)]
        super().__init__(bundle, device=device, threads=threads, watch=self.names)

    def hidden(self, buffers: Buffers) -> F32:
        """Float32 [L+1,B,S,H] of the last call; ``buffers`` are not looked at."""
        return np.stack([self.watched[name] for name in self.names])
