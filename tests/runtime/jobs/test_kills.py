"""Jobs that are killed, told to stop, started twice, or run out of disk: real processes, real signals, real disks."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import EXIT_IO, EXIT_LOCKED, InputError
from latentwire.runtime.jobs.commit import JobFolder
from latentwire.runtime.jobs.verify import verify_job

from .stub import SHARD_ROWS, contents, run_stub, stub_job, write_input

ROWS = 18
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


@pytest.fixture(scope="module")
def ask(root: Path) -> Iterator[Ask]:
    """Ask the zygote for something."""
    words = [sys.executable, "-m", "tests.runtime.jobs.zygote"]
    with subprocess.Popen(words, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zygote:
        assert zygote.stdin
        assert zygote.stdout

        def one(do: str = "one", **request: Any) -> dict[str, Any]:
            assert zygote.stdin
            assert zygote.stdout
            print(json.dumps({"do": do, "sleep_s": 0, **request}), file=zygote.stdin, flush=True)
            reply: dict[str, Any] = json.loads(zygote.stdout.readline())
            return reply

        yield one
        zygote.stdin.close()


@pytest.fixture
def name(tmp_path: Path) -> str:
    return write_input(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def golden(name: str, tmp_path: Path) -> dict[str, str]:
    run_stub(stub_job(name), tmp_path / "golden")
    return contents(tmp_path / "golden")


def finished(out: Path) -> bool:
    try:
        JobFolder(out).read_manifest()
    except InputError:
        return False
    return True


def kill_many(ask: Ask, name: str, golden: dict[str, str], base: Path, kills: int) -> None:
    """Kill runs at random moments, each after the first going on with what the last one left."""
    rng, killed, jobs, longest = random.Random(8), 0, 0, 0.04
    while killed < kills:
        out, count, hits = base / f"out{jobs}", base / f"count{jobs}", 0
        jobs += 1
        while not finished(out):
            kill_s = rng.uniform(0, longest) if killed < kills else 60
            request = {"signal": signal.SIGKILL, "kill_s": kill_s} if killed < kills else {}
            status = ask(input=name, out=str(out), count=str(count), sleep_s=0.004, **request)["status"]
            assert status in (3, -signal.SIGKILL)
            hits += status == -signal.SIGKILL
            killed += status == -signal.SIGKILL
            # What a busy machine does not get done in time it must be given time for.
            longest *= 0.7 if status == 3 else 1.05
        assert ask(input=name, out=str(out))["status"] == 3
        assert contents(out) == golden
        assert count.stat().st_size <= ROWS + hits * SHARD_ROWS
    print(f"{killed} kills in {jobs} jobs, 0 violations")


def test_kill_at_any_moment(ask: Ask, name: str, golden: dict[str, str], tmp_path: Path) -> None:
    kill_many(ask, name, golden, tmp_path, 100)


@pytest.mark.slow
def test_kill_at_any_moment_a_thousand_times(ask: Ask, name: str, golden: dict[str, str], tmp_path: Path) -> None:
    kill_many(ask, name, golden, tmp_path, 1000)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop(
    ask: Ask, name: str, golden: dict[str, str], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    count = tmp_path / "count"
    reply = ask(input=name, out=str(out), count=str(count), wait=str(tmp_path / "never"), signal=sent, kill_s=1.0)
    assert reply["status"] == status
    assert reply["seconds"] < 5
    assert not finished(out)
    assert list((out / "_tmp").iterdir()) == []
    assert ask(input=name, out=str(out))["status"] == 3
    assert contents(out) == golden


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_in_the_middle_of_a_long_call(
    ask: Ask, name: str, golden: dict[str, str], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    reply = ask(input=name, out=str(out), deaf=True, grace_s=0.2, signal=sent, kill_s=1.0)
    assert reply["status"] == status
    assert reply["seconds"] < 5
    assert not finished(out)
    assert ask(input=name, out=str(out))["status"] == 3
    assert contents(out) == golden


def test_two_processes_on_one_folder(ask: Ask, name: str, golden: dict[str, str], tmp_path: Path) -> None:
    for n in range(20):
        out = tmp_path / f"out{n}"
        reply = ask("two", input=name, out=str(out), wait=str(tmp_path / f"go{n}"))
        assert reply["statuses"] == [EXIT_LOCKED, 3]
        assert contents(out) == golden


def test_5004_a_limit_on_the_size_of_files(ask: Ask, name: str, golden: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    largest = max(p.stat().st_size for p in (tmp_path / "golden").rglob("*"))
    for limit in (0, 500, 3000, largest - 1):
        assert ask(input=name, out=str(out), limit=limit)["status"] == EXIT_IO
        assert not finished(out)
    assert ask(input=name, out=str(out))["status"] == 3
    assert contents(out) == golden


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not here")
    if mounted.returncode:
        pytest.skip(f"only root may mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_5004_a_full_disk(ask: Ask, name: str, golden: dict[str, str], small_disk: Path) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    full = 0
    for size in (128, 112, 96, 80, 64, 0):
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(size << 10))
        status = ask(input=name, out=str(out))["status"]
        full += status == EXIT_IO
        assert status in (EXIT_IO, 3)
        assert finished(out) == (status == 3)
    assert full >= 2
    assert contents(out) == golden
    assert verify_job(out)["rows"] == ROWS
