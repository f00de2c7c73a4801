"""The reference engine: the bundle's own decoder, node by node in plain torch. Slow and obvious.

Runs what ONNX Runtime cannot load on a CPU (bfloat16), on any device of torch, and returns any tensor of the
graph by name. So does splice, which reads the decoder's table; encoder and adapter run on ONNX Runtime. torch and
onnx are imported when it is made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentFault
from ..core.extras import needs
from .base import F32, I64, PARTS
from .buffers import Buffers, alloc_buffers, decoder_inputs
from .bundle import Bundle
from .checks import check_decode, check_extend, check_prefill, check_splice, finite, fitted_capacity
from .cross import given_to
from .ort_parts import OrtParts
from .prefix import Prefix, place
from .tensors import check_all

if TYPE_CHECKING:
    from torch import Tensor

    from .torch_graph import TorchGraph


@dataclass
class TorchBuffers(Buffers):
    """Buffers seen by torch: ``past`` and ``present`` are the same memory, by graph name."""

    past: dict[str, Tensor] = field(repr=False, default_factory=dict)
    present: dict[str, Tensor] = field(repr=False, default_factory=dict)

    def rows(self, start: int, stop: int) -> Self:
        """As ``Buffers.rows``."""
        view = super().rows(start, stop)
        view.past = {n: t[start:stop] for n, t in self.past.items()}
        view.present = {n: t[start:stop] for n, t in self.present.items()}
        return view


class TorchRefEngine(OrtParts):
    """See ``base.Engine``.

    Args:
        bundle: verified bundle.
        device: of the decoder: ``cpu``, ``cuda``, ``cuda:1``.
        threads: computing threads of the other graphs; None: every processor this process may use.
        parts: graphs that may be used.
        watch: tensors of the decoder graph to keep from each call, in ``watched``.

    Raises:
        EnvironmentFault: 5011 torch or onnx is not installed; 5001 torch has no such device.
    """

    name = "torch-ref"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int | None = None,
        parts: Collection[str] = PARTS,
        watch: Collection[str] = (),
    ) -> None:
        super().__init__(bundle, threads=threads, parts=parts)
        require_torch()
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise EnvironmentFault(
                5001, "torch sees no GPU", where=f"device {device}", fix="pass --device cpu, or install a driver"
            )
        self.device = device
        self.watch = tuple(watch)
        self.watched: dict[str, npt.NDArray[Any]] = {}
        """The tensors of ``watch`` after the last call, floats as float32."""
        self._graphs: dict[str, TorchGraph] = {}

    def graph(self, part: str) -> TorchGraph:
        """``decoder`` or ``splice``, loaded when first asked for.

        Raises:
            BundleError: 4001 the graph cannot be read or has an unknown operator; 4008 the caller named other parts.
        """
        self.require(part)
        if part not in self._graphs:
            from .torch_graph import TorchGraph

            self._graphs[part] = TorchGraph(self.bundle.file(f"{part}.onnx"), self.device)
        return self._graphs[part]

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """As ``base.Engine.splice``."""
        given: dict[str, npt.NDArray[Any]] = {"input_ids": input_ids, "row_index": row_index, "rows": rows}
        check_all(given, self.io_spec()["splice"].inputs)
        check_splice(input_ids, row_index, rows.shape[1], self.bundle.manifest.llm.vocab_size)
        found = self._compute("splice", given)["inputs_embeds"]
        embeds: F32 = found.cpu().numpy()
        finite(embeds, "inputs_embeds", self.name)
        return embeds

    def alloc(self, batch: int, capacity: int) -> TorchBuffers:
        """As ``base.Engine.alloc``."""
        manifest = self.bundle.manifest
        plain = alloc_buffers(manifest.llm, batch, fitted_capacity(batch, capacity, manifest), manifest.llm.dtype)
        buffers = TorchBuffers(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        buffers.past = {name: shared(array).to(self.device) for name, array in buffers.cache.items()}
        buffers.present = {present: buffers.past[past] for present, past in self.aliases().items()}
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
        """As ``base.Engine.insert``: in the host's arrays, from which another device takes its own."""
        place(buffers, prefix)
        if self.device != "cpu" and isinstance(buffers, TorchBuffers):
            for name, tensor in buffers.past.items():
                tensor.copy_(shared(buffers.cache[name]))

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``."""
        check_decode(buffers.lengths, buffers.capacity)
        self._step(buffers, buffers.next_embeds, np.ones(buffers.batch, np.int64))

    def close(self) -> None:
        """As ``base.Engine.close``."""
        super().close()
        self._graphs.clear()

    def _compute(
        self,
        part: str,
        arrays: Mapping[str, npt.NDArray[Any]],
        buffers: TorchBuffers | None = None,
        watch: Collection[str] = (),
    ) -> dict[str, Tensor]:
        import torch

        given = {name: torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}
        past, present = (buffers.past, buffers.present) if buffers else ({}, {})
        with torch.inference_mode():
            return self.graph(part).run(given | past, present, watch)

    def _step(self, buffers: Buffers, embeds: F32, lengths: I64) -> None:
        if not isinstance(buffers, TorchBuffers):
            raise TypeError("buffers of another engine")
        read = given_to(self._cross, buffers.cross, buffers.batch)
        given = decoder_inputs(buffers.lengths, embeds, lengths) | read
        found = self._compute("decoder", given, buffers, self.watch)
        for name in ("logits", "next_token", "next_embeds"):
            getattr(buffers, name)[...] = found[name].cpu().numpy()
        if self.device != "cpu":
            _copy_back(buffers)
        buffers.lengths += lengths
        self.watched = {name: plain(found[name]) for name in self.watch}
        finite(buffers.logits, "logits", self.name)


def require_torch() -> None:
    """Raise EnvironmentFault 5011 unless torch and onnx are installed."""
    with needs("train"):
        import onnx  # noqa: F401
        import torch  # noqa: F401


def shared(array: npt.NDArray[Any]) -> Tensor:
    """A torch view of a numpy array; torch does not know numpy's bfloat16, but its bits."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def plain(tensor: Tensor) -> npt.NDArray[Any]:
    """A numpy copy; every float type becomes float32."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    array: npt.NDArray[Any] = tensor.cpu().numpy().copy()
    return array


def _copy_back(buffers: TorchBuffers) -> None:
    """What another device wrote, into the host's arrays, so that they can be looked at."""
    for name, tensor in buffers.past.items():
        shared(buffers.cache[name]).copy_(tensor)
