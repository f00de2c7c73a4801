"""Every file operation of a four-shard job fails once in each of six ways; the same command then finishes the job.

What must hold after each: the folder is finished only if it is whole; the second run gives the golden bytes, leaves
nothing behind, and encodes at most one shard again.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentwire.core import disk
from latentwire.core.console import configure
from latentwire.core.errors import EXIT_IO, InputError, LatentWireError
from latentwire.runtime.jobs import progress
from latentwire.runtime.jobs.commit import JobFolder
from latentwire.runtime.jobs.run import Job
from latentwire.runtime.jobs.status import read_status
from latentwire.runtime.jobs.verify import verify_job

from .faults import INTERRUPTED, IO_ERROR, KINDS, LOSS, NO_SPACE, SHORT, Crash, FaultyDisk, applies
from .simdisk import LOST, NAMES, RANDOM
from .stub import SHARD_ROWS, StubEncoder, contents, run_stub, stub_job, write_input

ROWS = 18


@dataclass
class Setting:
    job: Job
    root: Path
    golden: dict[str, str]
    log: list[str]

    @property
    def out(self) -> Path:
        return self.root / "out"

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_S", 1e9)  # every run makes the same calls, however busy the machine
        yield new_setting(tmp_path_factory.mktemp("faults"))


def new_setting(base: Path) -> Setting:
    root = base / "root"
    root.mkdir()
    found = Setting(stub_job(write_input(base / "in.jsonl", ROWS)), root, {}, [])
    disk.calls = calls = FaultyDisk(root)
    run_stub(found.job, found.out)
    disk.calls = disk.Calls()
    found.log = calls.log
    found.golden = contents(found.out)
    verify_job(found.out)  # what has the same bytes is as sound
    return found


Outcome = LatentWireError | Crash | OSError | None


def faulted(setting: Setting, calls: FaultyDisk, encoder: StubEncoder) -> Outcome:
    """Run the job on a failing disk; what came of it."""
    disk.calls = calls
    try:
        run_stub(setting.job, setting.out, encoder)
    except (LatentWireError, Crash, OSError) as e:
        return e
    finally:
        calls.hang_up()
        disk.calls = disk.Calls()
    return None


def check(setting: Setting, kind: str, at: int, mode: str = LOST) -> list[str]:
    """What went wrong with one case; nothing should."""
    setting.clear()
    encoder, calls = StubEncoder(), FaultyDisk(setting.root, kind, at)
    outcome = faulted(setting, calls, encoder)
    if outcome is None and (setting.out / "_tmp").exists() and kind not in (IO_ERROR, NO_SPACE):
        return ["_tmp is left by a run that ended well"]
    if kind == LOSS:
        calls.power_cut(mode, random.Random(at))
    wrong = list(after_fault(setting, kind, outcome))
    if outcome is not None:
        calls = calls.mended()
        outcome = faulted(setting, calls, encoder)
        if outcome is not None:
            return [*wrong, f"the second run ended with {outcome!r}"]
        if (setting.out / "_tmp").exists():
            wrong.append("_tmp is left")
    if encoder.rows > ROWS + SHARD_ROWS:
        wrong.append(f"{encoder.rows - ROWS} rows were encoded twice")
    calls.power_cut(LOST, random.Random(at))
    return wrong + differences(setting)


def after_fault(setting: Setting, kind: str, outcome: Outcome) -> Iterator[str]:
    if kind in (SHORT, INTERRUPTED) and outcome is not None:
        yield f"it should not have been noticed: {outcome}"
    if isinstance(outcome, OSError):
        yield f"not explained: {outcome!r}"
    if isinstance(outcome, LatentWireError) and outcome.exit_code != EXIT_IO:
        yield f"exit status {outcome.exit_code}: {outcome}"
    try:
        JobFolder(setting.out).read_manifest()
        yield from (f"finished, but {w}" for w in differences(setting))
    except InputError:
        if outcome is None:
            yield "the run ended well without finishing"
    with contextlib.suppress(InputError):  # nothing is there yet
        read_status(setting.out)


def differences(setting: Setting) -> list[str]:
    """Files that are not as in the golden folder; a power cut may bring back what was cleaned up."""
    found = {k: v for k, v in contents(setting.out).items() if not k.startswith("_")}
    wrong = [k for k in sorted(found.keys() | setting.golden.keys()) if found.get(k) != setting.golden.get(k)]
    return [f"differs: {wrong}"] if wrong else []


def violations(setting: Setting, kind: str, modes: Sequence[str]) -> list[str]:
    cases = [(at, modes[at % len(modes)]) for at, call in enumerate(setting.log) if applies(kind, call)]
    found = [
        f"{kind} {mode} at {at} ({setting.log[at]}): {wrong}"
        for at, mode in cases
        for wrong in check(setting, kind, at, mode)
    ]
    print(f"{kind}: {len(cases)} cases, {len(found)} violations")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_fails_once(setting: Setting, kind: str) -> None:
    assert violations(setting, kind, (LOST, NAMES, RANDOM)) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", [LOST, NAMES, RANDOM])
def test_every_loss_at_every_operation(setting: Setting, mode: str) -> None:
    assert violations(setting, LOSS, (mode,)) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_the_progress_file_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Refusing(disk.Calls):
        def rename(self, source: str, target: str) -> None:
            if target.endswith("_progress.json"):
                asked.append(target)
                raise OSError(number, "no")
            super().rename(source, target)

    asked: list[str] = []
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(disk, "calls", Refusing())
    run_stub(stub_job(write_input(tmp_path / "in.jsonl", ROWS)), tmp_path / "out")
    assert len(asked) >= 4
    assert verify_job(tmp_path / "out")["rows"] == ROWS
