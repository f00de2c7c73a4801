from __future__ import annotations

from pathlib import Path

import pytest

from latentwire.benchmarks.roofline import Limits, Shape, ceiling, flop_per_sample, limits, shape_of

SMOLLM2 = Shape(106_200_000, 28_311_552, 538_000_000, 46_080, 4 * 30 * 576)


def test_the_arithmetic_of_the_design_page() -> None:
    """14.9 and 57.3 GFLOP for 50 and 240 positions, 3.9 times."""
    short, long = flop_per_sample(SMOLLM2, 50, 16), flop_per_sample(SMOLLM2, 240, 16)
    assert short / 1e9 == pytest.approx(14.9, rel=0.02)
    assert long / 1e9 == pytest.approx(57.3, rel=0.03)


def test_the_ceiling_is_bound_by_memory_at_batch_1_and_by_arithmetic_later() -> None:
    found = Limits(165e9, 20e9)
    one, many = (ceiling(SMOLLM2, found, b, 50, 16) for b in (1, 32))
    assert one < 60 / (16 * 538e6 / 20e9)  # sixteen passes read all weights
    assert many == pytest.approx(665, rel=0.1)
    assert ceiling(SMOLLM2, found, 32, 240, 16) == pytest.approx(173, rel=0.1)


def test_limits_are_measured() -> None:
    found = limits(size=128, copied=1 << 20, repeats=2)
    assert found.flops > 1e8
    assert found.bandwidth > 1e8


def test_the_shape_is_read_from_the_weights(smollm2_bundle: Path) -> None:
    facts = {"vocabulary": 49152, "hidden": 576, "layers": 30, "kv_heads": 3, "head_dim": 64}
    found = shape_of(smollm2_bundle, facts)
    assert found.layer_params == pytest.approx(106.2e6, rel=0.01)
    assert found.head_params == 49152 * 576
    assert found.kv_bytes == 46_080
