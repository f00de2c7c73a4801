"""Measured processes: replies, and every way to misbehave as a reason, never as a fast row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentwire.benchmarks.children import Child, ChildFault
from latentwire.benchmarks.launches import Launch
from latentwire.benchmarks.rounds import alternate
from latentwire.benchmarks.session import Contender, Session

from .stubs import STUB, short_inputs, stub, toy_plan


def test_a_stub_peer_answers_and_tells_its_time_and_memory() -> None:
    with Child("stub", (sys.executable, str(STUB), "good")) as child:
        assert child.ask("open", threads=1)["facts"]["how"] == "stub"
        child.ask("prepare", prompts={"W1-text": [[1, 2], [3, 4, 5], [6]]})
        reply = child.ask("run", workload="W1-text", first=0, count=3, batch=2, new_tokens=2)
        assert reply["tokens"] == [[3, 4], [6, 7], [7, 8]]  # in the order given, though the longest ran first
        assert (reply["prompt_real"], reply["prompt_padded"]) == (6, 3 + 3 + 1)
        assert len(reply["call_s"]) == 2
        assert reply["wall_s"] >= sum(reply["call_s"]) - 1e-6
        assert child.ask("stats")["peak_rss_bytes"] > 1 << 20
        with pytest.raises(ChildFault, match="KeyError"):
            child.ask("no such operation")
        assert child.ask("stats")["ok"]  # a fault does not end it


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("no model", "FileNotFoundError: no such model"),
        ("dies", "ended with status 9: a library that talks on stdout / last words"),
        ("short", "asked for 2 answers of 3 tokens, got 2 tokens"),
    ],
)
def test_a_peer_that_fails_drops_out_with_its_reason(toy: Path, mode: str, said: str) -> None:
    plan = toy_plan(toy, stub(mode), stub("good"))
    with Session(plan.launches) as session:
        session.prepare(short_inputs().take(4))
        everyone = [Contender(launch, "W1-text") for launch in plan.launches]
        found = alternate(session, everyone, lambda who: (4, 2), 2, 3)
        assert {who.launch.name for who in found} == {"latentwire fp32", "stub good"}
        assert said in " ".join(session.failed.values())
        assert all(len(timing.wall_s) == 2 for timing in found.values())


def test_a_peer_that_hangs_is_killed() -> None:
    with Child("stub", (sys.executable, str(STUB), "hangs"), timeout_s=20) as child:
        child.ask("open", threads=1)
        child.ask("prepare", prompts={"W1-text": [[1]]})
        child._timeout_s = 0.3
        with pytest.raises(ChildFault, match=r"no answer to run within 0\.3 s"):
            child.ask("run", workload="W1-text", first=0, count=1, batch=1, new_tokens=1)
        assert child._process.poll() is not None


def test_a_process_that_is_not_there_and_one_that_talks_nonsense() -> None:
    with pytest.raises(ChildFault, match="cannot start"):
        Child("none", ("/no/such/program",))
    talker = (sys.executable, "-c", "print('hello', flush=True); input()")
    with Child("echo", talker) as child, pytest.raises(ChildFault, match="no reply but"):
        child.ask("open")
    with Session([Launch("absent", (), None, reason="not set up")]) as session:
        assert session.failed == {"absent": "not set up"}


def test_own_process_runs_all_workloads_with_exact_tokens(toy: Path) -> None:
    plan = toy_plan(toy)
    with Session(plan.launches) as session:
        session.prepare(short_inputs().take(4))
        for workload, real in (("W1", True), ("W1-text", True), ("W3", True), ("W2", False), ("W2-model", False)):
            reply = session.run(Contender(plan.own, workload), 4, 2, 3)
            assert reply, session.failed
            assert reply["new"] == ([3] * 4 if real else [])
            assert bool(reply["prompt_real"]) == real
            if workload == "W1":
                assert reply["counts"]["decode_calls"] == 2 * 2  # two batches of two, three tokens each
                assert reply["counts"]["prefill_calls"] == 2
        single = session.run(Contender(plan.own, "W1"), 4, 1, 3, one_by_one=True)
        assert single
        assert len(single["call_s"]) == 4
        text = session.run(Contender(plan.own, "W1-text"), 4, 4, 3)
        check = session.ask(plan.own, "check", prompts=[[256, 65, 66], [256, 67]], new_tokens=3, batch=2)
        alone = session.ask(plan.own, "check", prompts=[[256, 67]], new_tokens=3, batch=1)
        assert text
        assert check
        assert alone
        assert check["tokens"][1] == alone["tokens"][0]  # the neighbour does not matter
        assert session.failed == {}
