"""Atomic writes: whole or not there, whatever happens; disk faults become one clear error."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.core import files
from latentwire.core.errors import EXIT_IO, EnvironmentFault


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def code_of(error: pytest.ExceptionInfo[EnvironmentFault]) -> int:
    return error.value.code


def test_sha256_and_progress(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * (files.CHUNK + 5))
    seen: list[int] = []
    assert files.sha256_file(path, seen.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen == [files.CHUNK, 5]


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    files.atomic_write_json(tmp_path / "deep" / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "deep" / "a.json").read_text("utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.atomic_write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_bytes_replace_only_when_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.atomic_write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault) as error:
        files.atomic_write_bytes(path, b"new")
    assert code_of(error) == 5004
    assert error.value.exit_code == EXIT_IO
    assert str(path) in str(error.value)
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 5004), (errno.EDQUOT, 5004), (errno.EFBIG, 5004), (errno.EROFS, 5005), (errno.EACCES, 5005)],
)
def test_disk_faults_are_named(tmp_path: Path, number: int, code: int) -> None:
    with pytest.raises(EnvironmentFault) as error, files.disk_faults(tmp_path):
        raise OSError(number, os.strerror(number))
    assert code_of(error) == code
    assert error.value.exit_code == EXIT_IO


def test_other_os_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.disk_faults(tmp_path):
        (tmp_path / "none").read_bytes()


def test_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "model"
    with files.atomic_folder(dest) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not dest.exists()
        assert folder.parent == dest.parent
    assert (dest / "sub" / "a").read_text() == "1"
    assert names(dest.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_folder_leaves_nothing_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with files.atomic_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        work()
    assert names(tmp_path) == []


def test_folder_does_not_replace_unasked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with files.atomic_folder(tmp_path / "model") as folder:  # empty: as good as absent
        (folder / "a").write_text("1")
    with pytest.raises(EnvironmentFault) as error, files.atomic_folder(tmp_path / "model"):
        pytest.fail("the block must not run")
    assert code_of(error) == 5008
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault) as error, files.atomic_folder(tmp_path / "file"):
        pytest.fail("the block must not run")
    assert code_of(error) == 5008


def test_folder_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    def work() -> None:
        with files.atomic_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("mine")
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "a").write_text("theirs")

    with pytest.raises(EnvironmentFault) as error:
        work()
    assert code_of(error) == 5008
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "theirs"


def test_folder_overwrites_when_asked(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with files.atomic_folder(tmp_path / "model", overwrite=True) as folder:
            (folder / text).write_text(text)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ValueError), files.atomic_folder(tmp_path / "model", overwrite=True) as folder:
        raise ValueError
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


HALF = """
import sys, time
from latentwire.core.files import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("x" * 1000)
    print("half", flush=True)
    time.sleep(60)
"""


def test_killed_process_leaves_only_litter_that_is_swept(tmp_path: Path) -> None:
    dest = tmp_path / "model"
    child = subprocess.Popen([sys.executable, "-c", HALF, str(dest)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "half\n"
        assert files.sweep_leftovers(dest) == []  # its maker lives: not ours to remove
        assert len(names(tmp_path)) == 1
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not dest.exists()
    with files.atomic_folder(dest) as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == ["model"]


LIMITED = """
import resource, sys
from latentwire.core.console import run_cli
from latentwire.core.files import atomic_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def main():
    with atomic_folder(sys.argv[1]) as folder:
        (folder / "a").write_bytes(bytes(200_000))
run_cli(main)
"""


def test_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_IO
    assert done.stderr.startswith("LW-5004 no space left to write; ")
    assert len(done.stderr.splitlines()) == 1
    assert names(tmp_path) == []


def test_require_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.require_space(tmp_path / "not" / "yet", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_500_000))
    with pytest.raises(EnvironmentFault) as error:
        files.require_space(tmp_path, 2_000_000)
    assert code_of(error) == 5004
    assert "2.0 MB free, got 1.5 MB" in str(error.value)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (538_090_408, "538.1 MB"), (2.5e12, "2.5 TB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert files.human_bytes(count) == text
