"""File operations whose calls are interrupted, cut short or refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from latentwire.core import disk


class Stingy(disk.Calls):
    """Reads and writes three bytes at a time, and every call is interrupted once before it works."""

    def __init__(self) -> None:
        self.again: set[str] = set()
        self.handles = 0

    def _interrupt(self, name: str) -> None:
        if name in self.again:
            self.again.remove(name)
        else:
            self.again.add(name)
            raise InterruptedError(errno.EINTR, "interrupted")

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        self._interrupt("open")
        self.handles += 1
        return super().open(path, flags, mode)

    def read(self, handle: int, size: int) -> bytes:
        self._interrupt("read")
        return super().read(handle, min(size, 3))

    def write(self, handle: int, data: memoryview) -> int:
        self._interrupt("write")
        return super().write(handle, data[:3])

    def fsync(self, handle: int) -> None:
        self._interrupt("fsync")
        super().fsync(handle)

    def close(self, handle: int) -> None:
        super().close(handle)
        self.handles -= 1
        raise InterruptedError(errno.EINTR, "closed all the same")

    def rename(self, source: str, target: str) -> None:
        self._interrupt("rename")
        super().rename(source, target)

    def mkdir(self, path: str) -> None:
        self._interrupt("mkdir")
        super().mkdir(path)


def test_interrupted_and_short_calls_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Stingy()
    monkeypatch.setattr(disk, "calls", calls)
    disk.make_folder(tmp_path / "a" / "b", sync=True)
    disk.write_new(tmp_path / "x", b"0123456789", sync=True)
    disk.rename(tmp_path / "x", tmp_path / "a" / "b" / "y")
    assert disk.read_all(tmp_path / "a" / "b" / "y") == b"0123456789"
    assert disk.read_all(tmp_path / "a" / "b" / "y", 4) == b"0123"
    assert calls.handles == 0


def test_a_file_is_never_opened_where_one_lies(tmp_path: Path) -> None:
    path = tmp_path / "x"
    disk.write_new(path, b"old", sync=False)
    with pytest.raises(FileExistsError):
        disk.write_new(path, b"new", sync=False)
    assert path.read_bytes() == b"old"


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.Calls, "write", lambda self, handle, data: 0)
    with pytest.raises(OSError) as caught:
        disk.write_new(tmp_path / "x", b"bytes", sync=False)
    assert caught.value.errno == errno.EIO


def test_small_writes_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(disk.Calls):
        def write(self, handle: int, data: memoryview) -> int:
            sizes.append(len(data))
            return super().write(handle, data)

    monkeypatch.setattr(disk, "calls", Counting())
    with disk.NewFile(tmp_path / "x") as file:
        for _ in range(3000):
            assert file.write(b"a" * 1000) == 1000
    assert sum(sizes) == 3_000_000
    assert len(sizes) <= 6
    assert (tmp_path / "x").stat().st_size == 3_000_000


def test_what_an_error_leaves_is_closed_and_not_completed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RuntimeError), disk.NewFile(tmp_path / "x") as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "x").read_bytes() == b""
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep").write_text("x")
    (tmp_path / "job" / "sub").mkdir(parents=True)
    (tmp_path / "job" / "link").symlink_to(tmp_path / "mine")
    disk.remove_tree(tmp_path / "job")
    disk.remove_tree(tmp_path / "job")
    assert not (tmp_path / "job").exists()
    assert (tmp_path / "mine" / "keep").exists()


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = errno.EINVAL

    def fsync(self: disk.Calls, handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.Calls, "fsync", fsync)
    disk.sync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError):
        disk.sync_folder(tmp_path)


def test_what_stands_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12")
    assert disk.size(tmp_path / "file") == 2
    assert disk.size(tmp_path) is None
    assert disk.size(tmp_path / "file" / "below") is None
    assert disk.is_folder(tmp_path)
    assert not disk.is_folder(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    assert disk.is_folder(tmp_path / "link")
    assert disk.size(tmp_path / "link") is None
    assert disk.names(tmp_path) == ["file", "link"]
    assert disk.names(tmp_path / "absent") == []
    with pytest.raises(FileExistsError):
        disk.make_folder(tmp_path / "file", sync=False)


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    handle = disk.hold_lock(tmp_path / "_LOCK")
    with pytest.raises(BlockingIOError):
        disk.hold_lock(tmp_path / "_LOCK")
    disk.release_lock(handle)
    disk.release_lock(disk.hold_lock(tmp_path / "_LOCK"))
