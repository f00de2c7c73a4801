"""ONNX Runtime on the CPU: the engine that every machine has.

The key/value cache never moves: each ``present`` output of the decoder is bound to the memory of its ``past``
input, so that ONNX Runtime writes the new slots in place. If it could not, it would log a warning at every
step; tests look for it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..core.errors import BundleError, EnvironmentFault
from .base import F32, I64, PARTS
from .buffers import Buffers, alloc_buffers, cache_names
from .bundle import Bundle
from .checks import check_alloc, check_decode, check_lengths, check_prefill, check_splice, finite
from .tensors import GraphSpec, check_all

WARNING: Final = 2
"""ONNX Runtime's severity from which it writes to stderr."""


@dataclass
class OrtBuffers(Buffers):
    """Buffers whose fixed addresses are bound to one decoder session already."""

    binding: Any = field(repr=False, default=None)


class OrtCpuEngine:
    """See ``base.Engine``.

    Args:
        bundle: verified bundle.
        threads: computing threads of each graph; None: every processor this process may use.
        parts: graphs that may be used.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, parts: Collection[str] = PARTS) -> None:
        self.name = "ort-cpu"
        self.bundle = bundle
        self.threads = threads or usable_processors()
        self.parts = frozenset(parts)
        self._sessions: dict[str, ort.InferenceSession] = {}

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

    def adapt(self, latents: F32) -> F32:
        """As ``base.Engine.adapt``."""
        return self._run("adapter", {"latents": latents}, "adapter rows")

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """As ``base.Engine.splice``."""
        check_splice(input_ids, row_index, rows.shape[1], self.bundle.manifest.llm.vocab_size)
        return self._run("splice", {"input_ids": input_ids, "row_index": row_index, "rows": rows}, "inputs_embeds")

    def alloc(self, batch: int, capacity: int) -> OrtBuffers:
        """As ``base.Engine.alloc``."""
        check_alloc(batch, capacity, self.bundle.manifest.llm)
        plain = alloc_buffers(self.bundle.manifest.llm, batch, capacity, self.bundle.manifest.llm.dtype)
        binding = self.session("decoder").io_binding()
        buffers = OrtBuffers(**{f.name: getattr(plain, f.name) for f in fields(plain)}, binding=binding)
        for present, past in self.aliases().items():
            _bind_input(binding, past, buffers.cache[past])
            _bind_output(binding, present, buffers.cache[past])
        for name in ("logits", "next_token", "next_embeds"):
            _bind_output(binding, name, getattr(buffers, name))
        return buffers

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.prefill``."""
        check_prefill(buffers.batch, buffers.capacity, inputs_embeds, lengths, self.bundle.manifest.llm.hidden_size)
        buffers.lengths[:] = 0
        self._step(buffers, inputs_embeds, lengths)

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``."""
        check_decode(buffers.lengths, buffers.capacity)
        # A copy: the step writes the next embedding where this one lies.
        self._step(buffers, buffers.next_embeds.copy(), np.ones(buffers.batch, np.int64))

    def close(self) -> None:
        """As ``base.Engine.close``."""
        self._sessions.clear()

    def session(self, part: str) -> ort.InferenceSession:
        """The session of one graph, made when first asked for.

        Raises:
            BundleError: 4001 ONNX Runtime cannot read the graph; 4008 the caller named other parts.
            EnvironmentFault: 5003 not enough memory.
        """
        if part not in self.parts:
            raise BundleError(
                4008, "this engine was opened without a graph", where=part, expected=f"opened: {sorted(self.parts)}"
            )
        if part not in self._sessions:
            self._sessions[part] = open_session(self.bundle.file(f"{part}.onnx"), self.threads)
        return self._sessions[part]

    def _run(self, part: str, given: Mapping[str, npt.NDArray[Any]], what: str) -> F32:
        """A graph with one output; checks what goes in and what comes out."""
        spec = self.io_spec()[part]
        check_all(given, spec.inputs)
        (out,) = _guarded(lambda: self.session(part).run([spec.outputs[0].name], dict(given)), part)
        array: F32 = out
        finite(array, what, self.name)
        return array

    def _step(self, buffers: Buffers, embeds: F32, lengths: I64) -> None:
        """``lengths[b]`` of the S given positions are true; the cache takes all S, the next call overwrites the rest.

        Every row's key/value length is write index + S, padding included: causality is aligned to the last
        position of the call, so a padded row's true queries would otherwise look past themselves.
        """
        if not isinstance(buffers, OrtBuffers):
            raise TypeError("buffers of another engine")
        new = embeds.shape[1]
        small = {
            "inputs_embeds": np.ascontiguousarray(embeds),
            "position_ids": buffers.lengths[:, None] + np.arange(new, dtype=np.int64),
            "write_indices": buffers.lengths.copy(),
            "kv_lengths": (buffers.lengths + new).astype(np.int32),
            "last_index": lengths - 1,
        }
        for name, array in small.items():
            _bind_input(buffers.binding, name, array)
        _guarded(lambda: self.session("decoder").run_with_iobinding(buffers.binding), "decoder")
        buffers.lengths += lengths
        finite(buffers.logits, "logits", self.name)


def usable_processors() -> int:
    """Processors this process may run on; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(model: Path | bytes, threads: int, weights: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        model: path of an ONNX file, or its bytes.
        threads: computing threads.
        weights: folder of the external data, for a model given as bytes.

    Raises:
        BundleError: 4001 ONNX Runtime cannot read or run the graph.
        EnvironmentFault: 5003 not enough memory.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = WARNING
    # Shapes change with every batch: a remembered plan for each would only pile up memory.
    options.enable_mem_pattern = False
    # As would an arena that never shrinks; without it a step is no slower.
    options.enable_cpu_mem_arena = False
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    source = model if isinstance(model, bytes) else str(model)
    name = "a graph in memory" if isinstance(model, bytes) else str(model)
    return _guarded(lambda: ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]), name)


def _guarded(call: Any, where: str) -> Any:
    """Run ``call``; ONNX Runtime's own exceptions leave as ours."""
    try:
        return call()
    except MemoryError as e:
        raise _memory(where, str(e)) from e
    except Exception as e:  # its bindings raise a dozen unrelated types
        if type(e).__module__.startswith("onnxruntime") or isinstance(e, RuntimeError):
            if "allocate memory" in str(e) or "bad_alloc" in str(e):
                raise _memory(where, str(e)) from e
            raise BundleError(4001, "ONNX Runtime cannot run a graph", where=where, expected=str(e)[:500]) from e
        raise


def _memory(where: str, message: str) -> EnvironmentFault:
    return EnvironmentFault(
        5003, "not enough memory", where=where, expected=message[:200], fix="use a smaller batch or shorter prompts"
    )


def _bind_input(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))


def _bind_output(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
