"""ONNX Runtime on the CPU: the engine that every machine has.

The key/value cache never moves: each ``present`` output of the decoder is bound to the memory of its ``past``
input, so that ONNX Runtime writes the new slots in place. If it could not, it would log a warning at every
step; tests look for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .base import CPU_FILL, F32, I64, PARTS, Engine
from .buffers import Buffers, alloc_buffers, decoder_inputs
from .bundle import Bundle
from .checks import check_decode, check_extend, check_prefill, finite, fitted_capacity
from .cross import given_to
from .ort_parts import OrtParts
from .ort_session import guarded, open_session
from .prefix import Prefix, place

__all__ = ["OrtBuffers", "OrtCpuEngine", "open_session"]


ADAPT_LATENTS: Final = 128
"""Latents of one call of the adapter: their scores for 50,000 tokens are 25 MB."""


LANES: Final = 2
"""Engines that share out the processors, each with its own rows: measured on two cores, not on more."""

LANE_BYTES: Final = 1 << 30
"""Most bytes of a decoder that lanes read apart. SmolLM2's have 0.2 (int8) to 0.5 GB; no larger ones were measured."""


@dataclass
class OrtBuffers(Buffers):
    """Buffers whose fixed addresses are bound to one decoder session already."""

    binding: Any = field(repr=False, default=None)

    def rows(self, start: int, stop: int) -> Self:
        """As ``Buffers.rows``; bound when first used."""
        view = super().rows(start, stop)
        view.binding = None
        return view


class OrtCpuEngine(OrtParts):
    """See ``base.Engine``.

    Args:
        bundle: verified bundle.
        threads: computing threads of each graph; None: every processor this process may use.
        parts: graphs that may be used.
    """

    name = "ort-cpu"
    fill = CPU_FILL

    def __init__(self, bundle: Bundle, *, threads: int | None = None, parts: Collection[str] = PARTS) -> None:
        super().__init__(bundle, threads=threads, parts=parts)
        self._part: OrtCpuEngine | None = None

    def lanes(self) -> Sequence[Engine]:
        """As ``base.Engine.lanes``: two, with half the threads each.

        Threads that share a graph's nodes wait for one another at each of its 2,000 nodes; lanes never do. Each lane
        reads all weights at every step, so that an LLM of many has none.
        """
        if self.threads < LANES or self._weight_bytes() > LANE_BYTES:
            return ()
        if self._part is None:
            self._part = OrtCpuEngine(self.bundle, threads=self.threads // LANES, parts=self.parts)
        return [self._part._beside(self.bundle) for _ in range(LANES)]

    def close(self) -> None:
        """As ``base.Engine.close``; its lanes with it."""
        super().close()
        if self._part:
            self._part.close()

    def adapt(self, latents: F32) -> F32:
        """As ``base.Engine.adapt``; a few rows at a time, because each latent is compared with the whole vocabulary."""
        rows = max(1, ADAPT_LATENTS // max(1, latents.shape[1]))
        starts = range(0, max(1, len(latents)), rows)
        made = np.concatenate([self._outputs("adapter", {"latents": latents[at : at + rows]})[0] for at in starts])
        finite(made, "adapter rows", self.name)
        return made

    def alloc(self, batch: int, capacity: int) -> OrtBuffers:
        """As ``base.Engine.alloc``."""
        manifest = self.bundle.manifest
        plain = alloc_buffers(manifest.llm, batch, fitted_capacity(batch, capacity, manifest), manifest.llm.dtype)
        buffers = OrtBuffers(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        self._bind(buffers)
        return buffers

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.prefill``."""
        check_prefill(buffers.batch, buffers.capacity, inputs_embeds, lengths, self.bundle.manifest.llm.hidden_size)
        buffers.lengths[:] = 0
        self._step(buffers, inputs_embeds, lengths)

    def extend(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.extend``."""
        hidden = self.bundle.manifest.llm.hidden_size
        check_extend(buffers.lengths, buffers.capacity, inputs_embeds, lengths, hidden, buffers.batch)
        self._step(buffers, inputs_embeds, lengths)

    def insert(self, buffers: Buffers, prefix: Prefix) -> None:
        """As ``base.Engine.insert``: numpy sees the memory that is bound."""
        place(buffers, prefix)

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``."""
        check_decode(buffers.lengths, buffers.capacity)
        # A copy: the step writes the next embedding where this one lies.
        self._step(buffers, buffers.next_embeds.copy(), np.ones(buffers.batch, np.int64))

    def _beside(self, bundle: Bundle) -> OrtCpuEngine:
        """Another engine on the same sessions, which ONNX Runtime lets several threads run at once."""
        found = OrtCpuEngine(bundle, threads=self.threads, parts=self.parts)
        found._sessions, found._opening = self._sessions, self._opening
        return found

    def _weight_bytes(self) -> int:
        return sum(entry.bytes for name, entry in self.bundle.manifest.files.items() if name.startswith("decoder."))

    def _bind(self, buffers: OrtBuffers) -> None:
        """Fix the addresses of the cache and of the outputs."""
        buffers.binding = self.session("decoder").io_binding()
        for present, past in self.aliases().items():
            _bind_input(buffers.binding, past, buffers.cache[past])
            _bind_output(buffers.binding, present, buffers.cache[past])
        for name in ("logits", "next_token", "next_embeds"):
            _bind_output(buffers.binding, name, getattr(buffers, name))

    def _step(self, buffers: Buffers, embeds: F32, lengths: I64) -> None:
        if not isinstance(buffers, OrtBuffers):
            raise TypeError("buffers of another engine")
        if buffers.binding is None:
            self._bind(buffers)
        read = given_to(self._cross, buffers.cross, buffers.batch)
        for name, array in (decoder_inputs(buffers.lengths, embeds, lengths) | read).items():
            _bind_input(buffers.binding, name, array)
        guarded(lambda: self.session("decoder").run_with_iobinding(buffers.binding), "decoder")
        buffers.lengths += lengths
        finite(buffers.logits, "logits", self.name)


def _bind_input(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))


def _bind_output(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
