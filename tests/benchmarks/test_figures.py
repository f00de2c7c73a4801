from __future__ import annotations

import pytest

from latentwire.benchmarks.figures import percentiles, ratio, spread
from latentwire.benchmarks.rounds import Timing, times_faster


def test_spread_of_a_steady_and_of_a_noisy_series() -> None:
    steady = spread([10.0, 10.1, 9.9])
    assert (steady["median"], steady["min"], steady["max"], steady["n"]) == (10.0, 9.9, 10.1, 3)
    assert steady["noisy"] is False
    assert spread([10.0, 14.0, 9.0])["noisy"] is True
    assert spread([1.0])["cv"] is None


def test_p99_needs_a_thousand_requests() -> None:
    assert percentiles([1.0] * 999)["p99"] is None
    assert percentiles([1.0] * 1000)["p99"] == 1.0
    assert percentiles(list(range(101)))["p95"] == 95.0


def test_a_ratio_pairs_rounds_so_that_a_slow_minute_cancels() -> None:
    fast = [1.0, 1.0, 10.0, 1.0, 1.0]  # the third round of both was ten times slower
    slow = [4.0, 4.0, 40.0, 4.0, 4.0]
    found = ratio(slow, fast)
    assert (found["median"], found["low"], found["high"]) == (4.0, 4.0, 4.0)
    wide = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert wide["low"] < wide["median"] < wide["high"]


def timing(seconds: list[float], count: int) -> Timing:
    found = Timing(batch=2, count=count)
    for s in seconds:
        reply = {
            "wall_s": s,
            "cpu_s": 2 * s,
            "call_s": [s],
            "prompt_real": 90,
            "prompt_padded": 100,
            "new": [16] * count,
        }
        found.add(reply)
    return found


def test_rounds_become_samples_a_minute_with_cpu_time_beside_them() -> None:
    found = timing([2.0, 4.0, 2.0], 10).figures()
    assert found["samples_per_min"]["median"] == 300
    assert found["samples_per_cpu_min"]["median"] == 150
    assert found["cpu_ms_per_sample"] == 400
    assert found["processors_used"] == 2
    assert found["prompt_tokens"] == {"real": 9, "padded": 10, "padded_share": pytest.approx(0.1)}
    assert found["new_tokens"] == 16
    assert found["raw"]["wall_s"] == [2.0, 4.0, 2.0]


def test_times_faster_is_a_sample_not_a_round() -> None:
    found = times_faster(timing([1.0, 1.0], 10), timing([1.0, 1.0], 5))
    assert found["wall_s"]["median"] == 2.0
    assert found["cpu_s"]["median"] == 2.0
