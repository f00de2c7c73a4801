"""One ONNX Runtime session: how it is opened, and its exceptions as ours.

Knows neither bundles nor what a graph means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import onnxruntime as ort

from ..core.errors import BundleError, EnvironmentFault

VERSION: Final[str] = ort.__version__
WARNING: Final = 2
"""ONNX Runtime's severity from which it writes to stderr, unless asked otherwise."""
FATAL: Final = 4

OUT_OF_MEMORY: Final = (
    "allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "available memory",
    "alloc_failed",
)
"""What its messages say, in lower case, when memory is short: on the host, in the CUDA arena, in CUDA, in cuBLAS."""

Providers = Sequence[tuple[str, Mapping[str, Any]]]
T = TypeVar("T")

CPU: Final[Providers] = (("CPUExecutionProvider", {}),)


def open_session(
    model: Path | bytes,
    threads: int,
    weights: Path | None = None,
    providers: Providers = CPU,
    severity: int = WARNING,
) -> ort.InferenceSession:
    """A session.

    Args:
        model: path of an ONNX file, or its bytes.
        threads: computing threads on the CPU.
        weights: folder of the external data, for a model given as bytes.
        providers: execution providers and their options, first choice first.
        severity: from which ONNX Runtime writes to stderr.

    Raises:
        BundleError: 4001 ONNX Runtime cannot read or run the graph.
        EnvironmentFault: 5003 not enough memory.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = severity
    # Shapes change with every batch: a remembered plan for each would only pile up memory.
    options.enable_mem_pattern = False
    # Without an arena every large tensor is fresh pages from the kernel, at each step: a third of the time.
    options.enable_cpu_mem_arena = True
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    source = model if isinstance(model, bytes) else str(model)
    name = "a graph in memory" if isinstance(model, bytes) else str(model)
    chosen = [(provider, dict(settings)) for provider, settings in providers]
    return guarded(lambda: ort.InferenceSession(source, options, providers=chosen), name)


def guarded(call: Callable[[], T], where: str) -> T:
    """Run ``call``; ONNX Runtime's own exceptions leave as ours: BundleError 4001, EnvironmentFault 5003."""
    try:
        return call()
    except MemoryError as e:
        raise memory_fault(where, str(e)) from e
    except Exception as e:  # its bindings raise a dozen unrelated types
        if type(e).__module__.startswith("onnxruntime") or isinstance(e, RuntimeError):
            said = str(e).lower()
            if any(words in said for words in OUT_OF_MEMORY):
                raise memory_fault(where, str(e)) from e
            raise BundleError(4001, "ONNX Runtime cannot run a graph", where=where, expected=str(e)[:500]) from e
        raise


def memory_fault(where: str, message: str) -> EnvironmentFault:
    """EnvironmentFault 5003, to be raised."""
    return EnvironmentFault(
        5003, "not enough memory", where=where, expected=message[:200], fix="use a smaller batch or shorter prompts"
    )
