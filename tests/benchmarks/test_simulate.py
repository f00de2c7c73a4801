"""The simulation: the same requests, every one accounted for, and times that follow from the costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentwire.benchmarks import traces
from latentwire.benchmarks.simulate import simulate
from latentwire.benchmarks.simulation import Asked, capacity, policies, run
from latentwire.benchmarks.step_cost import Cost, measure
from latentwire.benchmarks.traces import Sizes, Trace
from latentwire.core.errors import InputError
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine
from latentwire.runtime.scheduler.state import Limits

COST = Cost(prefill=10, position=1, decode=20, row=2)


def limits(rows: int, refill: bool = True, waiting: int | None = None) -> Limits:
    return Limits(rows, rows * 2048, 2048, refill=refill, online=True, step=128, waiting=waiting)


def trace(at: list[float], prompt: list[int], new: list[int]) -> Trace:
    longest = np.full(len(at), max(new))
    return Trace(np.array(at), np.array(prompt), np.array(new), longest, "by hand")


def test_one_request_by_hand() -> None:
    found = simulate(trace([1.0], [50], [4]), COST, limits(4))
    assert found["wait_ms"]["p50"] == pytest.approx(0)
    assert found["first_token_ms"]["p50"] == pytest.approx(10 + 50)
    assert found["answer_ms"]["p50"] == pytest.approx(10 + 50 + 3 * 22)  # one row of four is computed
    assert (found["prefills"], found["decodes"]) == (1, 3)
    assert found["busy_share"] == pytest.approx(0.126 / 1.126)


@pytest.mark.parametrize("refill", [True, False])
def test_two_rows_and_a_third_request_by_hand(refill: bool) -> None:
    """Rows of 2 and 5 tokens begin together (10 + 2 x 30 ms); a third request of one token comes at once."""
    found = simulate(trace([0.0, 0.0, 0.0], [30, 30, 30], [2, 5, 1]), COST, limits(2, refill))
    second_token = 70 + 24
    # Whole batches go on with row 1 alone for three tokens before the third request is read (40 ms).
    ended = second_token + 40 + 3 * 22
    assert found["seconds"] == pytest.approx(ended / 1e3)
    third = second_token if refill else second_token + 3 * 22
    assert found["wait_ms"]["most"] == pytest.approx(third)


@pytest.mark.parametrize("refill", [True, False])
@pytest.mark.parametrize("engines", [1, 5])
def test_every_request_is_answered_once(refill: bool, engines: int) -> None:
    requests = traces.made("bursty", 3000, 20.0 * engines, Sizes(), 1)
    found = simulate(requests, COST, limits(8, refill), engines)
    assert (found["answered"], found["refused"]) == (3000, 0)
    assert 0 < found["busy_share"] <= 1
    assert found["first_token_ms"]["p50"] > found["wait_ms"]["p50"]
    assert found["answer_ms"]["p99"] >= found["answer_ms"]["p50"] > found["first_token_ms"]["p50"]
    assert found == simulate(requests, COST, limits(8, refill), engines)


def test_a_full_queue_refuses_and_nothing_else_is_lost() -> None:
    requests = traces.made("poisson", 2000, 200.0, Sizes(), 1)
    found = simulate(requests, COST, limits(2, waiting=5))
    assert found["refused"] > 1000
    assert found["answered"] + found["refused"] == 2000


def test_refilled_rows_wait_less_than_whole_batches() -> None:
    sizes = Sizes()
    requests = traces.made("poisson", 4000, 0.8 * capacity(COST, sizes, 16), sizes, 0)
    found = {name: simulate(requests, COST, limit) for name, limit in policies(Asked(None, COST)).items()}
    assert found["refill at 1"]["answer_ms"]["p50"] < found["batches"]["answer_ms"]["p50"] / 2
    assert found["refill at 1"]["rows_idle_share"] < found["batches"]["rows_idle_share"]


@pytest.mark.parametrize("kind", ["poisson", "bursty"])
def test_arrivals_have_the_rate_that_was_asked_for(kind: traces.Arrivals) -> None:
    made = traces.made(kind, 100_000, 50.0, Sizes(), 3)
    assert len(made) / made.at[-1] == pytest.approx(50, rel=0.05)
    assert (np.diff(made.at) >= 0).all()
    seconds = np.bincount(made.at.astype(int))
    spread = seconds.var() / seconds.mean()  # 1 for Poisson
    assert (spread == pytest.approx(1, abs=0.1)) if kind == "poisson" else spread > 3
    assert made.new.max() == 16
    assert np.median(made.prompt) == 51


GOOD = {"at": 1.5, "prompt": 20, "new_tokens": 3}


def test_a_trace_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "at": 2.0, "limit": 9}) + "\n")
    found = traces.read(path)
    assert found.at.tolist() == [0.0, 0.5]
    assert found.limit.tolist() == [3, 9]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["not json"], 2101),
        (["[1]"], 2101),
        ([{"at": 1}], 2101),
        ([{**GOOD, "at": float("nan")}], 2101),
        ([{**GOOD, "new_tokens": 0}], 2101),
        ([{**GOOD, "limit": 2}], 2101),
        ([GOOD, {**GOOD, "at": 1}], 2101),
        ([{**GOOD, "prompt": 4000}], 2101),
        ([], 2104),
        (None, 2106),
    ],
)
def test_a_bad_trace_is_refused_before_anything_runs(tmp_path: Path, lines: list[object] | None, code: int) -> None:
    path = tmp_path / "day.jsonl"
    if lines is not None:
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    with pytest.raises(InputError) as caught:
        run(Asked(None, COST, trace=path))
    assert caught.value.code == code


def test_costs_are_measured(toy: Path) -> None:
    found = measure(ToyEngine(read_bundle(toy)), 40, 8)
    assert found.position > 0
    assert found.decode + found.row > 0
    with pytest.raises(InputError) as caught:
        run(Asked(None, None))
    assert caught.value.code == 2111


def test_the_command(tmp_path: Path, toy: Path) -> None:
    words = ["bench", "simulate", "--bundle", str(toy), "--requests", "300", "--engines", "3", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "latentwire.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {f["answered"] for f in found["data"]["policies"].values()} == {300}
    assert {p.name for p in tmp_path.iterdir()} == {f"simulate-poisson.{kind}" for kind in ("md", "json", "png")}
