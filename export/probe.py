"""A bundle's own decoder, run on token prompts, with the residual stream of every layer in reach.

What is run is the file that ships: outputs are added to it in memory, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx

from ..engines.base import F32, I64
from ..engines.buffers import Buffers
from ..engines.ort import OrtBuffers, OrtCpuEngine, open_session
from .decoder import HIDDEN
from .graph import ELEMENT_TYPES

SLACK: Final = 4
"""Cache slots more than needed, so that a write too far lands in the cache and shows in the numbers."""


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

    def decode(self, buffers: Buffers) -> None:
        """As ``OrtCpuEngine.decode``; ``hidden`` has the states afterwards."""
        self._bind_hidden(buffers)
        super().decode(buffers)

    def _bind_hidden(self, buffers: Buffers) -> None:
        # Again for each call: an output that ONNX Runtime allocated keeps the shape of its first call.
        assert isinstance(buffers, OrtBuffers)
        for name in self.hidden_names():
            buffers.binding.bind_output(name, "cpu")

    def hidden(self, buffers: Buffers) -> F32:
        """Float32 [L+1,B,S,H] of the last call."""
        assert isinstance(buffers, OrtBuffers)
        # Bound last, after all that ``alloc`` bound.
        outputs = buffers.binding.get_outputs()[-len(self.hidden_names()) :]
        return np.stack([o.numpy().astype(np.float32) for o in outputs])


def embed(engine: OrtCpuEngine, prompts: Sequence[Sequence[int]]) -> F32:
    """Token prompts as right-padded embeddings [B,T,H], through the splice graph."""
    size = max(len(p) for p in prompts)
    ids = np.array([[*p, *[0] * (size - len(p))] for p in prompts], np.int64)
    none = np.full(ids.shape, -1, np.int64)
    return engine.splice(ids, none, np.zeros((len(ids), 1, engine.bundle.manifest.llm.hidden_size), np.float32))


def prefilled(engine: OrtCpuEngine, prompts: Sequence[Sequence[int]], new: int) -> Buffers:
    """Buffers after the prompts, with room for ``new`` tokens."""
    lengths = np.array([len(p) for p in prompts], np.int64)
    buffers = engine.alloc(len(prompts), int(lengths.max()) + new + SLACK)
    engine.prefill(buffers, embed(engine, prompts), lengths)
    return buffers


def greedy(engine: OrtCpuEngine, prompts: Sequence[Sequence[int]], steps: int) -> I64:
    """Greedy tokens [B,steps] of token prompts."""
    buffers = prefilled(engine, prompts, steps)
    tokens = [buffers.next_token.copy()]
    for _ in range(steps - 1):
        engine.decode(buffers)
        tokens.append(buffers.next_token.copy())
    buffers.check_guards()
    return np.stack(tokens, axis=1)
