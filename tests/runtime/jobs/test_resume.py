"""Jobs that stop and go on: same bytes, nothing twice, nothing foreign touched, one process at a time."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire.core import disk
from latentwire.core.console import configure
from latentwire.core.errors import LatentWireError
from latentwire.runtime.jobs.budget import Budget
from latentwire.runtime.jobs.lock import Holder, holder, job_lock
from latentwire.runtime.jobs.run import RunOptions
from latentwire.runtime.jobs.status import read_status
from latentwire.runtime.jobs.verify import verify_job

from .stub import StubEncoder, contents, run_stub, stub_job, write_input


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return write_input(tmp_path / "in.jsonl")


@pytest.fixture
def golden(name: str, tmp_path: Path) -> dict[str, str]:
    run_stub(stub_job(name), tmp_path / "golden")
    return contents(tmp_path / "golden")


def stops(code: int, exit_code: int, body: Callable[[], object]) -> LatentWireError:
    with pytest.raises(LatentWireError) as caught:
        body()
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code), caught.value
    return caught.value


class Stopping(StubEncoder):
    """Is interrupted at the start of its third shard."""

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.rows = rows

    def compress_rows(self, texts: Any, options: Any, names: Any) -> Any:
        if self.rows >= 8:
            raise KeyboardInterrupt
        return super().compress_rows(texts, options, names)


def test_a_stopped_job_goes_on_with_the_same_command(name: str, tmp_path: Path, golden: dict[str, str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_job(name), out, Stopping())
    assert not (out / "manifest.json").exists()
    assert list((out / "_tmp").iterdir()) == []
    status = read_status(out)
    assert (status["shards_done"], status["shards_total"], status["rows_done"], status["rows_total"]) == (2, 4, 10, 18)
    stops(2108, 5, lambda: verify_job(out))
    second = StubEncoder()
    run_stub(stub_job(name), out, second)
    assert second.rows == 8
    assert contents(out) == golden
    assert verify_job(out)["rows"] == 18
    third = StubEncoder()
    run_stub(stub_job(name), out, third)
    assert third.rows == 0
    assert contents(out) == golden
    assert read_status(out)["state"] == "finished"


def test_what_was_damaged_is_made_again(name: str, tmp_path: Path, golden: dict[str, str]) -> None:
    out = tmp_path / "golden"
    part = out / "data" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    (out / "errors" / "part-00000.jsonl").unlink()
    (out / "commits" / "00003.json").write_bytes(b"{}")
    again = StubEncoder()
    run_stub(stub_job(name), out, again)
    assert again.rows == 13
    assert contents(out) == golden
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    assert "part-00001.parquet" in stops(2108, 5, lambda: verify_job(out)).expected
    run_stub(stub_job(name), out, again)
    assert again.rows == 13
    run_stub(stub_job(name), out, again, RunOptions(verify="full"))
    assert again.rows == 18
    assert contents(out) == golden


def test_what_belongs_to_no_commit_is_removed(name: str, tmp_path: Path, golden: dict[str, str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_job(name), out, Stopping())
    (out / "_tmp" / "dead").mkdir()
    for orphan in ("data/part-00009.parquet", "errors/part-00001.jsonl", "commits/00009.json", "_tmp/dead/x"):
        (out / orphan).write_bytes(b"{}")
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_job(name), out, Stopping(rows=8))
    assert list((out / "_tmp").iterdir()) == []
    run_stub(stub_job(name), out)
    assert contents(out) == golden


def test_2109_another_job_names_every_difference(name: str, tmp_path: Path, golden: dict[str, str]) -> None:
    out = tmp_path / "golden"
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    error = stops(2109, 5, lambda: run_stub(stub_job(name, codec="i8"), out))
    # A refused command leaves no trace.
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before
    assert "options.codec: text in the folder, i8 asked for" in error.expected
    assert "table.codec" in error.expected
    with Path(name).open("a", encoding="utf-8") as file:
        file.write('{"custom_id": "more", "text": "x"}\n')
    error = stops(2109, 5, lambda: run_stub(stub_job(name, shard_rows=6), out))
    for key in ("inputs[0].bytes", "inputs[0].sha256", "inputs[0].rows", "shard_rows: 5 in the folder, 6 asked for"):
        assert key in error.expected
    assert contents(out) == golden
    write_input(Path(name))
    run_stub(stub_job(name, codec="i8"), out, options=RunOptions(overwrite=True))
    assert contents(out).keys() == golden.keys()
    assert contents(out) != golden
    run_stub(stub_job(name), out, options=RunOptions(overwrite=True))
    assert contents(out) == golden


def test_overwrite_repeats_a_finished_job_and_goes_on_with_an_unfinished_one(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_job(name), out, Stopping())
    second, third = StubEncoder(), StubEncoder()
    run_stub(stub_job(name), out, second, RunOptions(overwrite=True))
    run_stub(stub_job(name), out, third, RunOptions(overwrite=True))
    assert (second.rows, third.rows) == (8, 18)


def test_5006_one_process_at_a_time(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with job_lock(out):
        error = stops(5006, 75, lambda: run_stub(stub_job(name), out))
        assert f"process {os.getpid()}" in error.what
        who = holder(out)
        assert who
        assert who.alive
        assert not Holder(who.pid, who.host, who.started + 1).alive
        assert Holder(who.pid, "elsewhere", 0).alive is None
    run_stub(stub_job(name), out)


def test_5007_a_file_system_without_locks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks(disk.Calls):
        def flock(self, handle: int) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(disk, "calls", NoLocks())
    stops(5007, 74, lambda: run_stub(stub_job(name), tmp_path / "out"))


def test_5007_bytes_that_read_back_differently(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lying(disk.Calls):
        def write(self, handle: int, data: memoryview) -> int:
            changed = bytearray(data)
            if changed[:4] == b"PAR1":
                changed[60] ^= 1
            return super().write(handle, memoryview(changed))

    monkeypatch.setattr(disk, "calls", Lying())
    error = stops(5007, 74, lambda: run_stub(stub_job(name), tmp_path / "out"))
    assert "part-00000.parquet" in error.where
    assert list((tmp_path / "out" / "commits").iterdir()) == []


@pytest.mark.parametrize("budget", [Budget(max_errors=1), Budget(max_error_rate=0.1)])
def test_2112_the_error_budget(name: str, tmp_path: Path, golden: dict[str, str], budget: Budget) -> None:
    out = tmp_path / "out"
    encoder = StubEncoder()
    error = stops(2112, 4, lambda: run_stub(stub_job(name), out, encoder, RunOptions(budget=budget)))
    assert "got 2 so far" in error.expected
    assert encoder.rows == 15
    idle = StubEncoder()
    stops(2112, 4, lambda: run_stub(stub_job(name), out, idle, RunOptions(budget=budget)))
    assert idle.rows == 0
    run_stub(stub_job(name), out, options=RunOptions(budget=Budget(max_errors=2, max_error_rate=0.12)))
    assert contents(out) == golden


@pytest.mark.parametrize("wrong", [{"max_errors": -1}, {"max_error_rate": 1.5}])
def test_2111_impossible_budgets(wrong: dict[str, Any]) -> None:
    stops(2111, 5, lambda: Budget(**wrong))


def test_5008_nothing_foreign_is_touched(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "_tmp").mkdir(parents=True)
    (out / "thesis.txt").write_text("keep me")
    for overwrite in (False, True):
        stops(5008, 5, lambda o=overwrite: run_stub(stub_job(name), out, options=RunOptions(overwrite=o)))  # type: ignore[misc]
    assert sorted(p.name for p in out.iterdir()) == ["_tmp", "thesis.txt"]


@pytest.mark.parametrize("begun", [True, False])
def test_no_fsync_is_recorded_and_its_shards_are_read_in_full(name: str, tmp_path: Path, begun: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_job(name), out, Stopping(), RunOptions(fsync=begun))
    run_stub(stub_job(name), out, options=RunOptions(fsync=False))
    assert json.loads((out / "job.json").read_bytes())["fsync"] is begun
    shards = json.loads((out / "manifest.json").read_bytes())["shards"]
    assert [s["fsync"] for s in shards] == [begun, begun, False, False]
    assert read_status(out)["fsync"] is begun
    for number in (1, 2):
        part = out / "data" / f"part-{number:05d}.parquet"
        part.write_bytes(bytes(part.stat().st_size))  # what a power cut may leave: the size without the bytes
    again = StubEncoder()
    run_stub(stub_job(name), out, again)
    assert again.rows == (5 if begun else 10)
    run_stub(stub_job(name), out, options=RunOptions(verify="full"))
    verify_job(out)


def test_fsync_is_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(disk.Calls):
        count = 0

        def fsync(self, handle: int) -> None:
            self.count += 1

    monkeypatch.setattr(disk, "calls", with_fsync := Counting())
    run_stub(stub_job(name), tmp_path / "a")
    monkeypatch.setattr(disk, "calls", without := Counting())
    run_stub(stub_job(name), tmp_path / "b", options=RunOptions(fsync=False))
    assert with_fsync.count >= 4 * 4
    assert without.count <= 3  # the plan for the workers; nothing of the job
