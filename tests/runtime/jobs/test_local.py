"""Workers that are processes: same bytes as without, whatever dies; one clear error where it cannot go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import InputError, LatentWireError
from latentwire.runtime.jobs.budget import Budget
from latentwire.runtime.jobs.inprocess import InProcess
from latentwire.runtime.jobs.local import STARTS, LocalWorkers, Patience
from latentwire.runtime.jobs.places import places
from latentwire.runtime.jobs.poison import TRIES
from latentwire.runtime.jobs.run import RunOptions, run_job
from latentwire.runtime.jobs.source import open_source
from latentwire.runtime.jobs.task import open_encoder
from latentwire.runtime.jobs.verify import verify_job
from latentwire.runtime.options import Machine

from .rogue import RogueEncoder
from .stub import contents, stub_job


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(quiet=True)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers import what this process can import


@pytest.fixture
def backends() -> Iterator[Callable[..., LocalWorkers]]:
    """Makes backends that are closed at the end, and leave no process behind."""
    made: list[LocalWorkers] = []

    def make(workers: int = 2, encoder: str = "open_encoder", **kw: Any) -> LocalWorkers:
        made.append(LocalWorkers(workers, encoder=f"rogue:{encoder}", **kw))
        return made[-1]

    yield make
    for backend in made:
        pids = backend.pids()
        backend.close()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def texts(folder: Path, *special: tuple[int, str], count: int = 40) -> str:
    """Input of ordinary rows, but for those named."""
    rows = [f"text number {i}" for i in range(count)]
    for at, text in special:
        rows[at] = text
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"r{i}", "text": t}) + "\n" for i, t in enumerate(rows)))
    return str(path)


def run(
    name: str, out: Path, backend: Any, shard_rows: int = 10, machine: Machine | None = None, **kw: Any
) -> dict[str, Any]:
    return run_job(stub_job(name, shard_rows=shard_rows), out, backend, machine or Machine(), RunOptions(**kw))


def golden(name: str, out: Path, shard_rows: int = 10) -> dict[str, str]:
    run(name, out, InProcess(lambda spec: RogueEncoder()), shard_rows)
    return contents(out)


Make = Callable[..., LocalWorkers]


@pytest.mark.parametrize("workers", [1, 3])
def test_same_bytes_as_in_this_process(backends: Make, tmp_path: Path, workers: int) -> None:
    name = texts(tmp_path, (3, ""), (17, "print"))
    run(name, tmp_path / "out", backends(workers))
    assert contents(tmp_path / "out") == golden(name, tmp_path / "golden")
    verify_job(tmp_path / "out")


def test_a_dead_worker_is_replaced(backends: Make, tmp_path: Path) -> None:
    marks = [tmp_path / f"died{i}" for i in range(2)]
    name = texts(tmp_path, (15, f"once {marks[0]}"), (25, f"once {marks[1]}"))
    run(name, tmp_path / "out", backends())
    assert all(mark.exists() for mark in marks)
    assert contents(tmp_path / "out") == golden(name, tmp_path / "golden")


def test_workers_killed_from_outside(backends: Make, tmp_path: Path) -> None:
    name = texts(tmp_path, *((i, f"slow {i}") for i in range(40)))
    backend = backends()
    killed: set[int] = set()
    seen = 0

    class Killer:
        def run(self, *args: Any) -> Iterator[Any]:
            nonlocal seen
            for event in backend.run(*args):
                seen += 1
                if fresh := [pid for pid in backend.pids() if pid not in killed][: 6 - len(killed)]:
                    os.kill(fresh[0], signal.SIGKILL)
                    killed.add(fresh[0])
                yield event

        def close(self) -> None:
            backend.close()

    run(name, tmp_path / "out", Killer(), shard_rows=4)
    assert len(killed) >= 4
    assert seen == 10
    assert contents(tmp_path / "out") == golden(name, tmp_path / "golden", 4)


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A death is believed at once."""
    monkeypatch.setattr("latentwire.runtime.jobs.poison.TRIES", 1)


def test_5003_poison_row_is_found_and_the_rest_is_done(backends: Make, tmp_path: Path) -> None:
    name = texts(tmp_path, (13, "die"))
    manifest = run(name, tmp_path / "out", backends())
    assert manifest["totals"]["errors_by_code"] == {"LW-5003": 1}
    rows = list(open_source(tmp_path / "out").rows())
    assert [r.row_index for r in rows] == list(range(40))
    assert [r.custom_id for r in rows if r.message is None] == ["r13"]
    assert f"{name}:14 (id r13)" in rows[13].error_message
    assert [s.get("poison") for s in manifest["shards"]] == [None, [3], None, None]
    verify_job(tmp_path / "out")
    (copy,) = (tmp_path / "out" / "errors").iterdir()
    assert json.loads(copy.read_text())["custom_id"] == "r13"


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize("word", ["exit", "raise", "gpu"])
def test_5003_other_ways_to_die(backends: Make, tmp_path: Path, word: str) -> None:
    name = texts(tmp_path, (2, word), count=4)
    manifest = run(name, tmp_path / "out", backends(1), shard_rows=2)
    assert manifest["totals"]["errors_by_code"] == {"LW-5003": 1}
    assert [s.get("poison") for s in manifest["shards"]] == [None, [0]]


def test_5003_told_to_fail(backends: Make, tmp_path: Path) -> None:
    name = texts(tmp_path, (33, "die"))
    with pytest.raises(LatentWireError) as caught:
        run(name, tmp_path / "out", backends(on_poison="fail"))
    assert (caught.value.code, caught.value.exit_code) == (5003, 6)
    assert "SIGKILL" in caught.value.expected
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.usefixtures("one_try")
@pytest.mark.parametrize(
    ("word", "patience"), [("hang", Patience(work_s=3.0)), ("freeze", Patience(silent_s=6.0))], ids=["hang", "freeze"]
)
def test_a_worker_that_stands_still_counts_as_dead(
    backends: Make, tmp_path: Path, word: str, patience: Patience
) -> None:
    name = texts(tmp_path, (0, word), count=1)
    manifest = run(name, tmp_path / "out", backends(1, patience=patience))
    assert manifest["totals"]["errors_by_code"] == {"LW-5003": 1}


def test_an_error_of_the_job_stops_it(backends: Make, tmp_path: Path) -> None:
    name = texts(tmp_path, (13, "disk"))
    with pytest.raises(LatentWireError) as caught:
        run(name, tmp_path / "out", backends())
    assert (caught.value.code, caught.value.where, caught.value.exit_code) == (5004, "here", 74)


def test_too_many_bad_rows_stop_the_workers(backends: Make, tmp_path: Path) -> None:
    backend = backends()
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path, (3, "")), tmp_path / "out", backend, budget=Budget(0))
    assert caught.value.code == 2112
    assert backend.pids() == []


@pytest.mark.parametrize(
    ("encoder", "code", "says"),
    [("refuse", 5001, "--device cpu"), ("break_down", 5012, "a library is missing"), ("vanish", 5012, "status 9")],
)
def test_5012_and_others_workers_that_do_not_start(
    backends: Make, tmp_path: Path, encoder: str, code: int, says: str
) -> None:
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path), tmp_path / "out", backends(encoder=encoder))
    assert (caught.value.code, caught.value.exit_code) == (code, 6)
    assert says in str(caught.value)
    assert STARTS == TRIES


def test_5012_a_worker_that_is_never_ready(backends: Make, tmp_path: Path) -> None:
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path), tmp_path / "out", backends(encoder="dawdle", patience=Patience(start_s=0.5)))
    assert caught.value.code == 5012
    assert "not ready" in caught.value.expected


def test_progress_comes_while_a_shard_is_at_work(backends: Make, tmp_path: Path) -> None:
    name = texts(tmp_path, *((i, f"slow {i}") for i in range(300)), count=300)
    heard: list[tuple[int, int]] = []
    backend = backends(1)

    class Listening:
        def run(self, spec: Any, shards: Any, on_rows: Any) -> Iterator[Any]:
            return backend.run(spec, shards, lambda shard, done: heard.append((shard, done)))

        def close(self) -> None:
            backend.close()

    run(name, tmp_path / "out", Listening(), shard_rows=300)
    assert heard.count((0, 128)) >= 4
    counts = [done for _, done in heard]
    assert counts == sorted(counts)
    assert {0, 128, 256} <= set(counts) <= {0, 128, 256, 300}  # the last is heard only while the table is written


def test_devices_and_threads_are_shared_out(backends: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    machine = Machine("cuda:0,cuda:1", threads=4)
    manifest = run(texts(tmp_path), tmp_path / "out", backends(encoder="talk"), machine=machine)
    assert sorted(capfd.readouterr().err.splitlines()) == ["device cuda:0 threads 2", "device cuda:1 threads 2"]
    assert {s["device"] for s in manifest["shards"]} == {"cuda"}


@pytest.mark.parametrize(
    ("machine", "workers", "pieces", "want"),
    [
        (Machine("cpu", threads=16), None, 0, [("cpu", 4)] * 4),
        (Machine("cpu", threads=16), None, 1, [("cpu", 16)]),
        (Machine("cpu", threads=2), None, 0, [("cpu", 2)]),
        (Machine("cpu", threads=2), 3, 0, [("cpu", 1)] * 3),
        (Machine("cuda:0,cuda:2", threads=8), None, 9, [("cuda:0", 4), ("cuda:2", 4)]),
        (Machine("cuda", threads=8), 2, 9, [("cuda", 4)] * 2),
    ],
)
def test_places(machine: Machine, workers: int | None, pieces: int, want: list[tuple[str, int]]) -> None:
    assert [(m.device, m.threads) for m in places(machine, workers, pieces)] == want


@pytest.mark.parametrize("device", ["cpu,cuda:0", "cuda:0,cuda:0", "cuda:0,"])
def test_2111_devices_that_do_not_go_together(device: str) -> None:
    with pytest.raises(InputError) as caught:
        places(Machine(device), None)
    assert caught.value.code == 2111
    assert device in caught.value.expected


PARENT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from latentwire.runtime.jobs.local import LocalWorkers
from tests.runtime.jobs.test_local import run
run(sys.argv[1], Path(sys.argv[2]), LocalWorkers(2, encoder="rogue:open_encoder"))
"""


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(
    backends: Make, tmp_path: Path, ends: signal.Signals, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(tmp_path, *((i, f"slow {i}") for i in range(300)), count=300)
    folder = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(root), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, name, str(folder)], env=env, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list(folder.glob("commits/*.json")) and time.monotonic() < until:
            time.sleep(0.01)
        workers = children(parent.pid)
        assert workers
        parent.send_signal(ends)
        start = time.monotonic()
        parent.wait(timeout=15)
        while any(map(alive, workers)) and time.monotonic() - start < 15:
            time.sleep(0.01)
        assert not any(map(alive, workers))
        # Within 5 s where nothing else runs; beside a busy neighbour 7.6 s were seen.
        assert time.monotonic() - start < 15
    finally:
        parent.kill()
        parent.wait()
    assert not (folder / "manifest.json").exists()
    run(name, folder, backends())
    assert contents(folder) == golden(name, tmp_path / "golden")


def test_the_real_encoder_opens_in_a_worker(toy_bundle: Path, tmp_path: Path) -> None:
    from latentwire.engines.bundle import read_bundle
    from latentwire.runtime.jobs.run import describe, plan_job
    from latentwire.runtime.options import CompressOptions

    job = describe(plan_job([texts(tmp_path)], None, 10), read_bundle(toy_bundle), CompressOptions())
    for out, backend in (("a", LocalWorkers(2)), ("b", InProcess(open_encoder))):
        run_job(job, tmp_path / out, backend, Machine())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_lazy_list_of_shards_is_not_read_ahead(backends: Make, tmp_path: Path) -> None:
    seen: list[int] = []
    backend = backends(2)

    def numbers(shards: Any) -> Iterator[int]:
        for number in shards:
            seen.append(number)
            yield number

    class Lazy:
        def run(self, spec: Any, shards: Any, on_rows: Any) -> Iterator[Any]:
            for done, event in enumerate(backend.run(spec, numbers(shards), on_rows)):
                assert len(seen) - done <= 2 * 2
                yield event

        def close(self) -> None:
            backend.close()

    run(texts(tmp_path), tmp_path / "out", Lazy(), shard_rows=3)
    assert len(seen) == 14


def test_the_command_line_says_how_many(toy_bundle: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from latentwire.runtime.jobs.cli import app

    name = texts(tmp_path)
    words = ["run", name, "-b", str(toy_bundle), "--shard-rows", "9", "-q", "--codec", "text"]
    for out, more in (("none", ["--workers", "0"]), ("two", ["--workers", "2", "--on-poison", "fail"])):
        assert CliRunner().invoke(app, [*words, "-o", str(tmp_path / out), *more]).exit_code == 0
    assert contents(tmp_path / "none") == contents(tmp_path / "two")
    wrong = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "x"), "--address", "auto"])
    assert (wrong.exit_code, "LW-2111" in wrong.output) == (5, True)
