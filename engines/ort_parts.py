"""Encoder, adapter and splice of a bundle on ONNX Runtime: everything before the decoder.

Every engine that adds a decoder of its own to these parts starts here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..core.errors import BundleError, EnvironmentFault
from ..core.processors import usable_processors
from .base import F32, I64, PARTS, Engine
from .buffers import Buffers, cache_names
from .bundle import Bundle
from .checks import check_lengths, check_splice, finite, optional_part
from .cross import Cross, cross_inputs
from .ort_session import CPU, Providers, guarded, open_session
from .prefix import Prefix
from .tensors import GraphSpec, check_all


class OrtParts:
    """The parts of ``base.Engine`` that are one graph call each.

    Args:
        bundle: verified bundle.
        threads: computing threads of each graph; None: every processor this process may use.
        parts: graphs that may be used.
        providers: execution providers of ONNX Runtime.
    """

    name = "ort"
    max_batch = 0
    max_prompt = 0
    fill = 0

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        parts: Collection[str] = PARTS,
        providers: Providers = CPU,
    ) -> None:
        self.bundle = bundle
        self.threads = threads or usable_processors()
        self.parts = frozenset(parts)
        self._providers = providers
        self._cross = cross_inputs(bundle.manifest)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._opening = Lock()

    def lanes(self) -> Sequence[Engine]:
        """As ``base.Engine.lanes``: none."""
        return ()

    def io_spec(self) -> Mapping[str, GraphSpec]:
        """As ``base.Engine.io_spec``."""
        return self.bundle.manifest.graphs

    def aliases(self) -> Mapping[str, str]:
        """As ``base.Engine.aliases``."""
        return {name.replace("past", "present"): name for name in cache_names(self.bundle.manifest.llm.num_layers)}

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        """As ``base.Engine.encode``."""
        given = {"input_ids": input_ids, "lengths": lengths, "slots": np.arange(latents, dtype=np.int64)}
        sizes = check_all(given, self.io_spec()["encoder"].inputs)
        check_lengths(lengths, sizes["B"], min(sizes["S"], self.bundle.manifest.encoder.max_tokens), "encoder lengths")
        return self._run("encoder", given, "latents")

    def quantise(self, latents: F32) -> I64:
        """As ``base.Engine.quantise``."""
        codes = self._run(optional_part(self.bundle, "quantise"), {"latents": latents}, "codes")
        return codes.astype(np.int64, copy=False)

    def dequantise(self, codes: I64) -> F32:
        """As ``base.Engine.dequantise``."""
        return self._run(optional_part(self.bundle, "dequantise"), {"codes": codes}, "latents")

    def adapt(self, latents: F32) -> F32:
        """As ``base.Engine.adapt``."""
        return self._run("adapter", {"latents": latents}, "adapter rows")

    def prefix(self, latents: F32) -> tuple[F32, F32]:
        """As ``base.Engine.prefix``."""
        keys, values = self._outputs(optional_part(self.bundle, "prefix"), {"latents": latents})
        finite(keys, "keys of the prefix", self.name)
        finite(values, "values of the prefix", self.name)
        return keys, values

    def cross(self, latents: F32) -> Cross:
        """As ``base.Engine.cross``."""
        part = optional_part(self.bundle, "cross")
        found = self._outputs(part, {"latents": latents})
        for array in found:
            finite(array, "what layers read of the latents", self.name)
        return dict(zip((t.name for t in self.io_spec()[part].outputs), found, strict=True))

    def extend(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.extend``: an engine that can overrides it."""
        raise no_prefix(self.name)

    def insert(self, buffers: Buffers, prefix: Prefix) -> None:
        """As ``base.Engine.insert``: an engine that can overrides it."""
        raise no_prefix(self.name)

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """As ``base.Engine.splice``."""
        check_splice(input_ids, row_index, rows.shape[1], self.bundle.manifest.llm.vocab_size)
        return self._run("splice", {"input_ids": input_ids, "row_index": row_index, "rows": rows}, "inputs_embeds")

    def close(self) -> None:
        """As ``base.Engine.close``."""
        self._sessions.clear()

    def session(self, part: str) -> ort.InferenceSession:
        """The session of one graph, made when first asked for.

        Raises:
            BundleError: 4001 ONNX Runtime cannot read the graph; 4008 the caller named other parts.
            EnvironmentFault: 5003 not enough memory.
        """
        self.require(part)
        with self._opening:
            if part not in self._sessions:
                self._sessions[part] = self._open(part)
            return self._sessions[part]

    def require(self, part: str) -> None:
        """Raise BundleError 4008 for a graph that the caller did not ask for."""
        if part not in self.parts:
            raise BundleError(
                4008, "this engine was opened without a graph", where=part, expected=f"opened: {sorted(self.parts)}"
            )

    def _open(self, part: str) -> ort.InferenceSession:
        return open_session(self.bundle.file(f"{part}.onnx"), self.threads, providers=self._providers)

    def _run(self, part: str, given: Mapping[str, npt.NDArray[Any]], what: str) -> F32:
        """A graph with one output; checks what goes in and what comes out."""
        (array,) = self._outputs(part, given)
        finite(array, what, self.name)
        return array

    def _outputs(self, part: str, given: Mapping[str, npt.NDArray[Any]]) -> list[F32]:
        """All outputs of a graph, in the order of its spec."""
        spec = self.io_spec()[part]
        check_all(given, spec.inputs)
        names = [output.name for output in spec.outputs]
        found: list[F32] = guarded(lambda: self.session(part).run(names, dict(given)), part)
        return found


def no_prefix(engine: str) -> EnvironmentFault:
    """The error of an engine whose cache nothing can be put into."""
    return EnvironmentFault(
        5001,
        "this engine cannot put keys and values into its cache",
        where=f"engine {engine}",
        expected="expected ort-cpu or torch-ref for a bundle with a part prefix",
        fix="pass --device cpu",
    )
