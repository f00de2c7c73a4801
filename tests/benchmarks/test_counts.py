"""The guard: counts of the shipped checkpoint are those stored, and the guard sees what it must."""

from __future__ import annotations

import copy
from pathlib import Path

from latentwire.benchmarks.counts import MOST_PADDING, decode_step, differences, measure, padding, stored, workloads
from latentwire.engines.bundle import read_bundle


def test_counts_are_as_stored(smollm2_bundle: Path) -> None:
    """If a change means to alter them: ``latentwire bench counts --renew benchmarks/counts.json``."""
    assert differences(measure(smollm2_bundle), stored()) == []


def test_stored_counts_keep_the_limits() -> None:
    found = stored()
    assert {name: p for name, p in padding(found).items() if p > MOST_PADDING} == {}
    batches = found["samples"] / found["batch"]
    for name in ("W1", "W1-text"):
        counts = found["workloads"][name]
        assert counts["adapt_calls"] == batches <= counts["prefill_calls"]
        assert counts["decode_calls"] == 15 * batches
        assert counts["head_positions"] == 16 * found["samples"]  # new tokens, never prompt positions
    assert found["workloads"]["W2"]["encode_calls"] >= batches
    assert found["decode"]["cache_tensors_copied"] == 0
    assert found["workloads"]["W1"]["prefill_real"] < found["workloads"]["W1-text"]["prefill_real"] / 3


def test_every_kind_of_difference_is_named() -> None:
    found, wanted = stored(), stored()
    found["workloads"]["W1"]["decode_calls"] += 1
    del found["graphs"]["adapter"]
    found["decode"]["fresh_bytes_per_step"] = int(wanted["decode"]["fresh_bytes_per_step"] * 1.2)
    said = differences(found, wanted)
    assert [line.split(":")[0] for line in said] == [
        "decode.fresh_bytes_per_step",
        "graphs.adapter",
        "workloads.W1.decode_calls",
    ]
    near = copy.deepcopy(wanted)
    near["decode"]["fresh_bytes_per_step"] += 100
    assert differences(near, wanted) == []


def test_the_toy_bundle_can_be_counted(toy: Path) -> None:
    found = workloads(read_bundle(toy))
    assert found["W1"]["decode_calls"] == 15 * found["W1"]["adapt_calls"]
    assert decode_step(toy)["fresh_bytes_per_step"] > 0
