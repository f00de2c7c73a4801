"""What a change must not make worse unseen, in counts and never in times: calls, padding, bytes, graph nodes.

In: a bundle. Out: a dictionary that is kept as ``counts.json``, and the differences of another one from it.
The shipped texts are asked in a fixed way, on an engine that computes nothing where that is enough.
"""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..core.extras import needs
from ..engines.base import Engine
from ..engines.bundle import Bundle, read_bundle
from ..engines.opening import open_engine
from ..runtime.options import CompressOptions, GenerateOptions
from ..runtime.pipeline import Pipeline, raised
from ..runtime.splice import embeddings
from .counted import counted
from .dry import dry_engine
from .inputs import load_inputs

STORED: Final = "counts.json"
SAMPLES: Final = 64
BATCH: Final = 16
NEW_TOKENS: Final = 16
MOST_PADDING: Final = 0.10
LOOSE: Final = ("fresh_bytes_per_step",)
"""Counts of bytes that small Python objects blur: they may differ by a tenth. All others are exact."""


def measure(path: Path) -> dict[str, Any]:
    """All counts of one bundle.

    Raises:
        BundleError: as ``read_bundle``.
        EnvironmentFault: 5011 onnx is not installed.
    """
    bundle = read_bundle(path, verify="size")
    return {
        "samples": SAMPLES,
        "batch": BATCH,
        "workloads": workloads(bundle),
        "frame_bytes": frame_bytes(bundle),
        "graphs": graphs(bundle),
        "decode": decode_step(path),
    }


def workloads(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Workload -> calls of the engine, positions real and padded, positions of the head."""
    samples = load_inputs().take(SAMPLES)
    engine, counter = counted(dry_engine(bundle))
    pipe = Pipeline(engine)
    texts, questions = [s.text for s in samples], [s.question for s in samples]
    sending = CompressOptions(on_too_long="chunk", batch_size=BATCH)
    frames = pipe.compress(texts, sending)
    counter.take()
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, stop=(), batch_size=BATCH)
    work: dict[str, Callable[[], object]] = {
        "W1": lambda: raised(pipe.answers(frames, questions, options)),
        "W1-text": lambda: raised(pipe.answers(texts, questions, options)),
        "W2": lambda: pipe.compress(texts, sending),
    }
    out = {}
    for name, call in work.items():
        call()
        out[name] = {k: v for k, v in counter.take().items() if not k.startswith("alloc_bytes")}
    return out


def frame_bytes(bundle: Bundle) -> dict[str, int]:
    """Codec -> bytes of all frames of the samples."""
    pipe = Pipeline(dry_engine(bundle))
    texts = [s.text for s in load_inputs().take(SAMPLES)]
    sizes = {}
    for codec in ("f16", "i8", "text"):
        frames = pipe.compress(texts, CompressOptions(codec=codec, on_too_long="chunk"))
        sizes[codec] = sum(map(len, frames))
    return sizes


def graphs(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Graph -> nodes, and how many of each kind; none for a bundle without ONNX files."""
    with needs("export"):
        import onnx

    out: dict[str, dict[str, Any]] = {}
    for part in bundle.manifest.graphs:
        path = bundle.path / f"{part}.onnx"
        if path.is_file():
            nodes = onnx.load(str(path), load_external_data=False).graph.node
            out[part] = {"nodes": len(nodes), "kinds": dict(sorted(Counter(n.op_type for n in nodes).items()))}
    return out


def decode_step(path: Path) -> dict[str, int]:
    """Bytes of fresh memory that one decode step asks Python and numpy for, and how that grows with the cache.

    The cache is written in place, so that a step on four times the slots must take no more: growth stays 0.
    """
    engine = open_engine(path, verify="size", threads=1)
    try:
        small, large = (_fresh_bytes(engine, capacity) for capacity in (64, 256))
    finally:
        engine.close()
    batch, capacity = 4, 192
    llm = engine.bundle.manifest.llm
    slots = batch * capacity * llm.num_kv_heads * llm.head_dim * 4
    return {"fresh_bytes_per_step": small, "cache_tensors_copied": max(0, large - small) // slots}


def _fresh_bytes(engine: Engine, capacity: int) -> int:
    fixed = engine.bundle.manifest.capacity
    buffers = engine.alloc(4, fixed or capacity)
    ids = np.full((4, 3), engine.bundle.manifest.llm.bos[0] if engine.bundle.manifest.llm.bos else 0, np.int64)
    engine.prefill(buffers, embeddings(engine, ids), np.full(4, 3, np.int64))
    engine.decode(buffers)
    tracemalloc.start()
    try:
        engine.decode(buffers)  # warm: what Python keeps after its first call is not the step's
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        engine.decode(buffers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def stored() -> dict[str, Any]:
    """The committed counts of the shipped checkpoint on the embedded model."""
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath(STORED).read_bytes())
    return found


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str = "") -> list[str]:
    """``workloads.W1.decode_calls: 60, stored 60`` for every count that is not as stored."""
    out: list[str] = []
    for key in sorted({*found, *wanted}):
        name, here, there = f"{where}{key}", found.get(key), wanted.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            out += differences(here, there, f"{name}.")
        elif key in LOOSE and here is not None and there is not None:
            out += [f"{name}: {here}, stored {there}"] if abs(here - there) > there / 10 else []
        elif here != there:
            out.append(f"{name}: {here}, stored {there}")
    return out


def padding(found: Mapping[str, Any]) -> dict[str, float]:
    """Workload -> share of positions that are padding."""
    out = {}
    for name, counts in found["workloads"].items():
        for step in ("prefill", "encode"):
            if f"{step}_padded" in counts:
                out[name] = 1 - counts[f"{step}_real"] / counts[f"{step}_padded"]
    return out
