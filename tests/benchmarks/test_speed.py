"""Timed bodies for pytest-benchmark: one group a workload. Run once each without ``--benchmark-only``.

pytest tests/benchmarks/test_speed.py --slow --benchmark-only --benchmark-json out.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.benchmarks.counted import CountedEngine
from latentwire.benchmarks.own import Own

pytestmark = pytest.mark.slow
pytest.importorskip("pytest_benchmark")

SAMPLES = 8


@pytest.fixture(scope="module")
def own(smollm2_bundle: Path) -> Iterator[Own]:
    """Our measured process, without the process."""
    from latentwire.benchmarks.inputs import load_inputs

    found = Own()
    found.open({"bundle": str(smollm2_bundle), "device": "cpu", "backend": "auto", "threads": None})
    samples = [{"text": s.text, "question": s.question} for s in load_inputs().take(SAMPLES)]
    found.prepare({"samples": samples, "latents": None, "codec": "i8"})
    yield found
    found.close()


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("workload", ["W1", "W1-text", "W2", "W3"])
def test_workload(own: Own, benchmark: Any, workload: str, batch: int) -> None:
    benchmark.group = f"{workload}-cpu"
    wanted = {"workload": workload, "first": 0, "count": SAMPLES, "batch": batch, "new_tokens": 16}
    reply = benchmark.pedantic(own.run, args=(wanted,), rounds=3, warmup_rounds=1, iterations=1)
    assert reply["new"] == ([] if workload == "W2" else [16] * SAMPLES)
    benchmark.extra_info.update(
        samples=SAMPLES, batch=batch, bundle=own.facts["bundle"], compute=own.facts["compute"], counts=reply["counts"]
    )


def test_decode_step(own: Own, benchmark: Any) -> None:
    import numpy as np

    from latentwire.runtime.splice import embeddings

    benchmark.group = "decode-cpu"
    counted = own.engine
    assert isinstance(counted, CountedEngine)
    ids = np.full((SAMPLES, 4), 1, np.int64)
    buffers = counted.alloc(SAMPLES, 256)
    counted.prefill(buffers, embeddings(own.engine, ids), np.full(SAMPLES, 4, np.int64))
    benchmark.pedantic(counted.decode, args=(buffers,), rounds=20, warmup_rounds=2, iterations=1)
    assert np.isfinite(buffers.logits).all()
