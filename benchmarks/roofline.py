"""The machine's limits, measured, and what the arithmetic of a workload allows within them.

In: threads, a bundle. Out: GFLOP/s of a float32 matrix product, GB/s of memory, and samples a minute that these
allow at every batch size. A pass takes max(FLOP / F, bytes / BW) seconds.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..core.processors import usable_processors

GEMM: Final = 1536
COPY_BYTES: Final = 256 << 20
REPEATS: Final = 5


@dataclass(frozen=True)
class Limits:
    """What the machine reached: FLOP a second (float32 product), bytes a second (read and written)."""

    flops: float
    bandwidth: float

    def to_json(self) -> dict[str, float]:
        """In GFLOP/s and GB/s."""
        return {"gflops": self.flops / 1e9, "gb_per_s": self.bandwidth / 1e9, "processors": usable_processors()}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder that arithmetic needs.

    Attributes:
        layer_params: parameters of all layers.
        head_params: vocabulary x hidden size.
        weight_bytes: of layers and head as stored.
        kv_bytes: of one position, keys and values of all layers.
        attention: FLOP of one query-key pair in all layers.
    """

    layer_params: int
    head_params: int
    weight_bytes: int
    kv_bytes: int
    attention: int


def limits(size: int = GEMM, copied: int = COPY_BYTES, repeats: int = REPEATS) -> Limits:
    """Measure with numpy's own BLAS and a copy that no cache holds; the best of a few tries."""
    a = np.ones((size, size), np.float32)
    b = np.ones((size, size), np.float32)
    out = np.empty_like(a)
    source = np.ones(copied // 4, np.float32)
    target = np.empty_like(source)
    product = _best(lambda: np.matmul(a, b, out=out), repeats)
    copy = _best(lambda: np.copyto(target, source), repeats)
    return Limits(2 * size**3 / product, 2 * source.nbytes / copy)


def shape_of(bundle: Path, facts: Mapping[str, int]) -> Shape:
    """From the headers of the bundle's weight files; ``facts``: sizes as our own process tells them."""
    params, stored = 0, 0
    header = _safetensors_header(bundle / "decoder.safetensors")
    for tensor in header.values():
        params += int(np.prod(tensor["shape"], dtype=np.int64))
        stored += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    head = facts["vocabulary"] * facts["hidden"]
    # A decoder whose head is the embedding table may keep it in the other file.
    layers = params - head if any(head == int(np.prod(t["shape"])) for t in header.values()) else params
    kv = 2 * facts["layers"] * facts["kv_heads"] * facts["head_dim"]
    return Shape(layers, head, stored, kv * 4, 4 * facts["layers"] * facts["hidden"])


def flop_per_sample(shape: Shape, prompt: float, new: int) -> float:
    """2W(P + N - 1) + 2Vh N + attention; the head is asked at N positions only."""
    pairs = sum(prompt + i for i in range(new)) + prompt * prompt / 2
    return 2 * shape.layer_params * (prompt + new - 1) + 2 * shape.head_params * new + shape.attention * pairs


def ceiling(shape: Shape, found: Limits, batch: int, prompt: float, new: int) -> float:
    """Samples a minute that the measured limits allow: one prefill and new - 1 decode passes of a batch."""

    def seconds(flop: float, slots: float) -> float:
        moved = shape.weight_bytes + batch * slots * shape.kv_bytes
        return max(flop / found.flops, moved / found.bandwidth)

    first = batch * (flop_per_sample(shape, prompt, 1))
    steps = [batch * 2 * (shape.layer_params + shape.head_params) for _ in range(new - 1)]
    total = seconds(first, prompt) + sum(seconds(flop, prompt + i) for i, flop in enumerate(steps, 1))
    return 60 * batch / total


def roofline(bundle: Path, shape: Mapping[str, int], points: Mapping[str, float], new: int) -> dict[str, Any]:
    """For each workload in ``points`` (its prompt positions): FLOP a sample and ceilings at batch sizes."""
    found, sizes = limits(), shape_of(bundle, shape)
    return {
        **found.to_json(),
        "workloads": {
            name: {
                "prompt": prompt,
                "gflop_per_sample": flop_per_sample(sizes, prompt, new) / 1e9,
                "ceiling": {str(b): ceiling(sizes, found, b, prompt, new) for b in (1, 2, 4, 8, 16, 32)},
            }
            for name, prompt in points.items()
        },
    }


def _best(work: Any, repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header
