"""Whole reports on the toy engine and a stub peer: rows, reasons, files, pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentwire.benchmarks import commands, machine, scaling
from latentwire.benchmarks.agreement import compare
from latentwire.benchmarks.compress import compress
from latentwire.benchmarks.inputs import resized
from latentwire.benchmarks.latency import latency
from latentwire.benchmarks.plan import Plan
from latentwire.benchmarks.quality import quality, score
from latentwire.benchmarks.report import Report, closed, write
from latentwire.benchmarks.session import Contender
from latentwire.benchmarks.throughput import round_samples, throughput, try_batches
from latentwire.core.errors import EnvironmentFault, InputError

from .stubs import short_inputs, stub, toy_plan


@pytest.fixture(scope="module")
def measured(toy: Path) -> Report:
    return throughput(toy_plan(toy, stub("good"), stub("short")))


def test_throughput_has_a_row_for_every_contender_or_a_reason(measured: Report) -> None:
    rows = {(r["contender"], r["workload"]): r for r in measured.data["rows"]}
    own = [("latentwire fp32", w) for w in ("W1", "W1-text", "W2", "W3")]
    assert sorted(rows) == sorted([*own, ("stub good", "W1-text"), ("stub good", "W1-same")])
    assert "got 2 tokens" in measured.data["not_run"]["stub short: W1-text"]
    text = rows[("latentwire fp32", "W1-text")]
    assert text["new_tokens"] == 3
    assert text["prompt_tokens"]["real"] > rows[("latentwire fp32", "W1")]["prompt_tokens"]["real"]
    assert text["w1_is_faster"]["wall_s"]["median"] > 0
    assert rows[("latentwire fp32", "W1")]["w1_is_faster"] is None
    assert rows[("latentwire fp32", "W1")]["frame_bytes"] > 0
    assert rows[("latentwire fp32", "W2")]["prompt_tokens"]["real"] is None
    assert all(r["peak_rss_bytes"] > 1 << 20 for r in rows.values())
    full, same = rows[("stub good", "W1-text")], rows[("stub good", "W1-same")]
    assert full["prompt_tokens"]["real"] > same["prompt_tokens"]["real"]
    tried = measured.data["batches"]["latentwire fp32: W1"]
    assert set(tried) == {"1", "4"}
    assert measured.data["stops_by_itself"]


def test_memory_of_one_workload_is_of_a_process_that_did_nothing_else(measured: Report) -> None:
    found = measured.data["memory_alone"]
    assert list(found) == ["latentwire fp32"]
    everything = next(r["peak_rss_bytes"] for r in measured.data["rows"] if r["contender"] == "latentwire fp32")
    assert found["latentwire fp32"]["workload"] == "W3"
    assert 1 << 20 < found["latentwire fp32"]["peak_rss_bytes"] < 2 * everything
    assert "memory of a new process" in measured.tables[-1].title


def test_agreement_compares_tokens_up_to_the_first_end_token(measured: Report) -> None:
    found = measured.data["agreement"]["stub good"]
    assert found["yardstick"] == "latentwire fp32"
    assert found["prompts"] > 0
    assert found["same"] == 0  # the stub counts, the toy does not
    assert compare({"tokens": [[1, 2, 9], [5]]}, [[1, 2], []], ["", ""]) == {"prompts": 1, "same": 1}
    assert compare({"texts": [" Paris.\nIt", "Rome"]}, [[1], [2]], ["Paris.", "Paris"]) == {"prompts": 2, "same": 1}


def test_a_report_states_its_conditions(measured: Report) -> None:
    found = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert found["schema"] == 1
    assert found["inputs"]["sha256"] == "0" * 64
    assert found["engines"]["latentwire fp32"]["bundle"]
    assert {"commit", "dirty", "command", "date", "versions", "machine", "others_processors"} <= set(found)
    assert found["machine"]["processors"] >= 1


def test_slow_contenders_answer_whole_batches_of_fewer_samples() -> None:
    found = {(rate, batch): round_samples(rate, batch, 32) for rate in (5, 86, 175, 1300) for batch in (8, 32)}
    assert found == {
        (5, 8): 8,
        (86, 8): 16,
        (175, 8): 32,
        (1300, 8): 32,
        **{(rate, 32): 32 for rate in (5, 86, 175, 1300)},
    }
    assert round_samples(1300, 8, 4) == 4


def test_a_batch_that_would_take_too_long_is_not_tried(toy: Path) -> None:
    launch, asked = stub(), []
    bar: list[int] = []
    seconds = {"W1": 1.0, "W1-text": 6.0, "W3": 5.0}  # of eight samples

    class Sure:
        def run(self, who: Contender, count: int, batch: int, new_tokens: int) -> dict[str, Any] | None:
            asked.append((who.workload, count, batch))
            took = seconds[who.workload] * count / 8
            return {"wall_s": took, "cpu_s": took, "call_s": [took]}

    everyone = [Contender(launch, workload) for workload in seconds]
    plan = replace(toy_plan(toy), samples=32, batches=(8, 32))
    found = try_batches(Sure(), everyone, plan, bar.append)  # type: ignore[arg-type]
    assert {who.workload: list(tried) for who, tried in found.items()} == {"W1": [8, 32], "W1-text": [8], "W3": [8, 32]}
    assert ("W3", 32, 32) in asked  # 20 s are allowed
    assert sum(bar) == 3 * 2 + 3  # warm-up and batches of both sizes, whether they ran or not


def test_long_texts_are_read_a_few_at_a_time() -> None:
    texts = {size: resized(short_inputs().take(4) * 4, size) for size in (256, 1024, 2048, 8192)}
    assert {size: scaling._text_samples(samples) for size, samples in texts.items()} == {
        256: 16,
        1024: 16,
        2048: 8,
        8192: 4,
    }


def test_tables_of_this_run_do_not_make_its_code_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "machine.py"))
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    assert machine.run_facts(0)["dirty"] is None  # no repository
    (results / "old.md").write_text("old")
    for words in (("init",), ("add", "."), ("commit", "-m", "tables")):
        git(*words)
    (results / "old.md").write_text("new")
    (results / "another.md").write_text("new")
    assert machine.run_facts(0)["dirty"] is False
    (tmp_path / "code.py").write_text("")
    assert machine.run_facts(0)["dirty"] is True


def test_files_and_picture(measured: Report, toy: Path, tmp_path: Path) -> None:
    files = write([measured], tmp_path / "here" / "name")
    assert [f.suffix for f in files] == [".md", ".json", ".png"]
    assert "stub short: W1-text | not run |" in files[0].read_text(encoding="utf-8")
    assert json.loads(files[1].read_text(encoding="utf-8"))["reports"][0]["kind"] == "throughput"
    assert files[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert files[2].stat().st_size > 10_000


def test_latency_counts_single_requests_and_cold_processes(toy: Path) -> None:
    found = latency(toy_plan(toy, stub("good"), stub("no model")))
    rows = {(r["contender"], r["workload"]): r for r in found.data["rows"]}
    assert rows[("latentwire fp32", "W1")]["requests"] == 4
    assert rows[("latentwire fp32", "W1")]["answer_ms"]["p99"] is None
    assert rows[("stub good", "W1-text")]["first_token_ms"]["p50"] >= 0
    assert found.data["cold"]["latentwire fp32"]["seconds"]["median"] > 0.05
    assert found.data["cold"]["stub good"]["raw"]
    assert "no such model" in found.data["cold"]["stub no model"]["failed"]
    assert "no such model" in found.data["not_run"]["stub no model"]


def test_compress_has_three_scopes(toy: Path) -> None:
    found = compress(toy_plan(toy, stub("good")))
    assert {(r["scope"], r["batch"]) for r in found.data["rows"]} == {
        (s, b) for s in ("model", "+tokenise") for b in (1, 4)
    }
    one = [r for r in found.data["rows"] if r["scope"] == "model" and r["batch"] == 1]
    assert one[0]["encoder_tokens"]["padded_share"] == 0
    assert one[0]["frame_bytes"] > 0
    assert found.data["jobs"]["latentwire fp32"]["samples"] == 4


def test_scaling_has_all_curves(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "CONTEXT_BYTES", (32,))
    monkeypatch.setattr(scaling, "LATENTS", (2, 4))
    monkeypatch.setattr(scaling, "NEW_TOKENS", (2,))
    monkeypatch.setattr(scaling, "DOCUMENTS", (20,))
    found = scaling.scaling(toy_plan(toy)).data["curves"]
    assert {name: [p["x"] for p in points if p["workload"] in ("W1", "W2")] for name, points in found.items()} == {
        "context_bytes": [32, 32],
        "latents": [2, 2, 4, 4],
        "new_tokens": [2],
        "documents": [20],
    }
    few, many = (p["prompt_tokens"]["real"] for p in found["latents"] if p["workload"] == "W1")
    assert many - few == 2


def test_quality_scores_every_bundle_beside_its_speed(toy: Path) -> None:
    found = quality(toy_plan(toy))
    assert {r["kind"] for r in found.data["rows"]} == {"latents", "full text"}
    row = found.data["rows"][0]
    assert row["nll"] > 0
    assert row["greedy_match"]["same"] == row["greedy_match"]["prompts"]
    assert row["speed"]["samples_per_min"]["median"] > 0
    assert any("intervals are wide" in remark for remark in found.remarks)


def test_scores() -> None:
    found = score(["the Bridge", "Rome"], [("bridge",), ("Paris",)])
    assert (found["f1"], found["em"]) == (0.5, 0.5)
    assert found["f1_interval"][0] <= 0.5 <= found["f1_interval"][1]


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before = {"all": 100.0, "own": 10.0, "at": 5.0}
    for more, told in ((21.0, []), (23.0, ["BUSY MACHINE: others used 0.30 of 4 processors; trust CPU time only."])):
        remarks: list[str] = []
        facts: dict[str, Any] = {"used_before": before}
        monkeypatch.setattr(machine, "used", lambda more=more: {"all": 100 + more, "own": 30.0, "at": 15.0})
        closed(facts, remarks)
        assert remarks == told
        assert facts["others_processors"] == pytest.approx((more - 20) / 10)
    assert machine.others(None, before) is None
    assert machine.disturbed(None) is None


@pytest.mark.parametrize(("more", "told"), [(0.1, None), (2.0, "others used 2.00 of 4 processors")])
def test_others_are_seen_before_anything_starts(monkeypatch: pytest.MonkeyPatch, more: float, told: str | None) -> None:
    looks = iter([{"all": 100.0, "own": 10.0, "at": 5.0}, {"all": 100.0 + more, "own": 10.0, "at": 6.0}])
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "used", lambda: next(looks))
    said = machine.busy(seconds=0)
    assert said == told or (told and said and said.startswith(told))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_own_children_are_not_others() -> None:
    before = machine.used()
    work = "import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    now = machine.used()
    assert before is not None
    assert now is not None
    assert now["own"] - before["own"] > 0.9
    assert now["all"] - before["all"] > 0.9


@pytest.mark.parametrize("sizes", [{"samples": 0}, {"batches": ()}, {"batches": (0,)}, {"new_tokens": 5000}])
def test_sizes_out_of_range_are_refused_before_anything_starts(toy: Path, sizes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Plan(toy_plan(toy).launches, short_inputs(), **sizes)
    assert caught.value.code == 2111


def test_our_own_failure_fails_the_command(toy: Path, measured: Report) -> None:
    plan = toy_plan(toy)
    commands.refuse_own_failure(measured, plan)  # a peer's failure is a row
    broken = Report("throughput", [], {"not_run": {"latentwire fp32: W3": "it broke"}}, {})
    with pytest.raises(EnvironmentFault) as caught:
        commands.refuse_own_failure(broken, plan)
    assert caught.value.code == 5020


def test_unknown_peers_are_refused(toy: Path) -> None:
    with pytest.raises(InputError) as caught:
        commands.planned(commands.Asked((toy,), peers=("exllama",)))
    assert caught.value.code == 2111


def test_the_command_prints_one_json_line_last(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[str, Callable[[Plan], Report]] = {"compress": compress}
    monkeypatch.setattr(commands, "KINDS", kinds)
    asked = commands.Asked((toy,), peers=("none",), threads=1, quick=True, out=tmp_path, sizes={"batches": (2,)})
    assert commands.run(["compress"], asked) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["kind"] == "compress"
    assert last["sizes"]["quick"] is True
    assert {p.suffix for p in tmp_path.iterdir()} == {".md", ".json", ".png"}
    assert all("-quick" in p.name for p in tmp_path.iterdir())
