"""Bits that flip and files that are cut: whatever is read is either what was written or an error."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import LatentWireError
from latentwire.runtime.jobs.run import RunOptions
from latentwire.runtime.jobs.sealed import read_sealed, seal
from latentwire.runtime.jobs.table import read_table
from latentwire.runtime.jobs.verify import verify_job

from .stub import contents, run_stub, stub_job, write_input

FLIPS = 1000
FILES: list[tuple[str, Callable[[Path], Any]]] = [
    ("job.json", read_sealed),
    ("manifest.json", read_sealed),
    ("commits/00000.json", read_sealed),
    ("data/part-00000.parquet", lambda path: list(read_table(path))),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    run_stub(stub_job(write_input(tmp_path / "in.jsonl", 18)), tmp_path / "out")
    return tmp_path / "out"


def wrong(read: Callable[[Path], Any], path: Path, good: Any) -> bool:
    """Whether a damaged file is read as something else than what was written."""
    try:
        return bool(read(path) != good)
    except LatentWireError:
        return False


def flip(file: BinaryIO, bit: int) -> None:
    """Turn one bit of a file over, in place."""
    file.seek(bit // 8)
    old = file.read(1)[0]
    file.seek(bit // 8)
    file.write(bytes([old ^ 1 << bit % 8]))


@pytest.mark.parametrize(("name", "read"), FILES, ids=[name for name, _ in FILES])
def test_a_flipped_bit_is_never_silently_wrong(job: Path, name: str, read: Callable[[Path], Any]) -> None:
    path, rng = job / name, random.Random(5)
    good = read(path)
    silent = []
    with path.open("rb+", buffering=0) as file:
        for bit in rng.sample(range(8 * path.stat().st_size), FLIPS):
            flip(file, bit)
            silent += [bit] if wrong(read, path, good) else []
            flip(file, bit)
    assert silent == []
    assert read(path) == good


@pytest.mark.parametrize(("name", "read"), FILES, ids=[name for name, _ in FILES])
def test_a_cut_file_is_refused_wherever_it_is_cut(job: Path, name: str, read: Callable[[Path], Any]) -> None:
    path = job / name
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(LatentWireError):
            read(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"null", b'{"seal": 1}', b'{"seal": "x", "a": NaN}', b"[" * 100_000, b"\xff\xfe", b"{" * 9],
)
def test_2108_records_that_nobody_wrote(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(text)
    with pytest.raises(LatentWireError) as caught:
        read_sealed(path)
    assert caught.value.code == 2108
    assert caught.value.where == str(path)


def test_a_sound_record_written_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    data = seal({"a": [1, 2], "b": "ü"})
    path.write_bytes(data)
    assert read_sealed(path) == {"a": [1, 2], "b": "ü"}
    for other in (data + b"\n", data.replace(b"  ", b" "), data.replace(b'"a"', b'"b": "x", "a"')):
        path.write_bytes(other)
        with pytest.raises(LatentWireError):
            read_sealed(path)


def test_whatever_was_damaged_the_same_command_repairs_or_refuses(job: Path, tmp_path: Path) -> None:
    golden, again = contents(job), stub_job(str(tmp_path / "in.jsonl"))
    rng = random.Random(9)
    for name in sorted(golden):
        path = job / name
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 16
        path.write_bytes(raw)
        with pytest.raises(LatentWireError) as caught:
            verify_job(job)
        assert caught.value.code == 2108
        if name == "job.json":  # what the job is, nobody else knows
            with pytest.raises(LatentWireError) as caught:
                run_stub(again, job)
            assert caught.value.code == 2108
            path.unlink()
            with pytest.raises(LatentWireError) as caught:
                run_stub(again, job)
            assert caught.value.code == 5008
            path.write_bytes(b"")
        options = RunOptions(verify="full", overwrite=name == "job.json")
        run_stub(again, job, options=options)
        assert contents(job) == golden, name
