"""File operations that say when their effect is on the disk. Every one that a job makes goes through here.

In: paths, bytes. Out: files. ``calls`` holds the system calls themselves, so that a test can make each of them
fail; the functions below add what the calls leave to their callers: interrupted calls are made again, short
writes are completed, a file is never opened where one lies already.

Errors: OSError as the system gives it; ``files.disk_faults`` explains it to people.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PIECE: Final = 1 << 20
"""Bytes that one call reads or writes at most."""


class Calls:
    """The system calls. One object of this class is in use at a time: ``disk.calls``."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """A handle, closed in child processes."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def read(self, handle: int, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        return os.read(handle, size)

    def write(self, handle: int, data: memoryview) -> int:
        """How many bytes were taken; perhaps not all."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        """Return when the file, or the folder's list of names, is on the disk."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Give the handle back."""
        os.close(handle)

    def flock(self, handle: int) -> None:
        """Lock without waiting; BlockingIOError where another process holds it."""
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in place of what had it."""
        os.rename(source, target)  # noqa: PTH104  # one way to name system calls

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        os.mkdir(path)  # noqa: PTH102

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)  # noqa: PTH106

    def listdir(self, path: str) -> list[str]:
        """Names in a folder."""
        return os.listdir(path)  # noqa: PTH208

    def lstat(self, path: str) -> os.stat_result:
        """Size, kind and number of what has this name; links are not followed."""
        return os.lstat(path)

    def fstat(self, handle: int) -> os.stat_result:
        """The same of an open file."""
        return os.fstat(handle)


calls = Calls()


class NewFile(io.RawIOBase):
    """A file that was not there before, open for writing from start to end. Gathers small writes.

    Raises:
        FileExistsError: it is there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._handle: int | None = None
        self._waiting = bytearray()
        self._handle = _again(calls.open, os.fspath(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]  # bytes are enough
        """Take all of ``data``; returns its size in bytes."""
        self._waiting += data
        if len(self._waiting) >= PIECE:
            self._drain()
        return len(data)

    def flush(self) -> None:
        """Hand what was gathered to the system."""
        if self._handle is not None:
            self._drain()

    def sync(self) -> None:
        """Return when everything written so far is on the disk."""
        self._drain()
        _again(calls.fsync, self._open_handle())

    def close(self) -> None:
        """Write the rest and give the handle back."""
        if self._handle is None:
            return
        try:
            self._drain()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give the handle back without writing the rest."""
        handle, self._handle = self._handle, None
        self._waiting.clear()
        super().close()
        if handle is not None:
            _close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _open_handle(self) -> int:
        if self._handle is None:
            raise ValueError("the file is closed")
        return self._handle

    def _drain(self) -> None:
        handle, data = self._open_handle(), bytes(self._waiting)
        self._waiting.clear()
        at = 0
        while at < len(data):
            taken = _again(calls.write, handle, memoryview(data)[at : at + PIECE])
            if taken <= 0:
                raise OSError(errno.EIO, "the disk takes no bytes")
            at += taken


def write_new(path: str | os.PathLike[str], data: bytes, *, sync: bool) -> None:
    """Make a file that was not there; with ``sync`` return when its bytes are on the disk. Its name may not be."""
    with NewFile(path) as file:
        file.write(data)
        if sync:
            file.sync()


def read_all(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """A whole file; with ``limit`` at most so many bytes of it."""
    handle = _again(calls.open, os.fspath(path), os.O_RDONLY)
    try:
        pieces: list[bytes] = []
        left = PIECE if limit is None else limit
        while left > 0 and (piece := _again(calls.read, handle, min(left, PIECE))):
            pieces.append(piece)
            left = PIECE if limit is None else left - len(piece)
    finally:
        _close(handle)
    return b"".join(pieces)


def hold_lock(path: str | os.PathLike[str]) -> int:
    """Open a lock file, made where it is missing, and lock it: a handle for ``release_lock``.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = _again(calls.open, os.fspath(path), os.O_RDWR | os.O_CREAT)
    try:
        _again(calls.flock, handle)
    except BaseException:
        release_lock(handle)
        raise
    return handle


def release_lock(handle: int) -> None:
    """Close a lock file, which unlocks it whatever the system says of it."""
    with contextlib.suppress(OSError):
        calls.close(handle)


def rename(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file another name, in place of what had it. Lasts only when both folders are synced."""
    _again(calls.rename, os.fspath(source), os.fspath(target))


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, or nothing where it is gone already."""
    try:
        _again(calls.unlink, os.fspath(path))
    except FileNotFoundError:
        return


def make_folder(path: str | os.PathLike[str], *, sync: bool) -> None:
    """Make a folder and those above it, unless they are there; with ``sync`` their names are on the disk then."""
    folder = Path(path)
    if is_folder(folder):
        return
    if not is_folder(folder.parent):
        make_folder(folder.parent, sync=sync)
    try:
        _again(calls.mkdir, os.fspath(folder))
    except FileExistsError:
        if not folder.is_dir():
            raise
    if sync:
        sync_folder(folder.parent)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder with everything in it, or a file; links are removed, not followed."""
    found = _lstat(path)
    if found is None:
        return
    if not _is(found, stat.S_IFDIR):
        remove(path)
        return
    for name in names(path):
        remove_tree(Path(path, name))
    try:
        _again(calls.rmdir, os.fspath(path))
    except FileNotFoundError:
        return


def names(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted names in a folder; none where it is missing."""
    try:
        return sorted(_again(calls.listdir, os.fspath(folder)))
    except FileNotFoundError:
        return []


def size(path: str | os.PathLike[str]) -> int | None:
    """Bytes of a plain file; None where there is none of that name."""
    found = _lstat(path)
    return found.st_size if found is not None and _is(found, stat.S_IFREG) else None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """A folder, or a link to one, has this name."""
    found = _lstat(path)
    if found is not None and _is(found, stat.S_IFLNK):
        return Path(path).is_dir()
    return found is not None and _is(found, stat.S_IFDIR)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Return when the names in a folder are on the disk."""
    handle = _again(calls.open, os.fspath(path), os.O_RDONLY)
    try:
        _again(calls.fsync, handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        _close(handle)


def _lstat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return _again(calls.lstat, os.fspath(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is(found: os.stat_result, kind: int) -> bool:
    return stat.S_IFMT(found.st_mode) == kind


def _close(handle: int) -> None:
    try:
        calls.close(handle)
    except InterruptedError:
        return  # the handle is gone all the same; closing it again might close somebody else's


def _again(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call until no signal interrupts it. Python does so itself for most of them, not for all."""
    while True:
        try:
            return call(*args, **kwargs)
        except InterruptedError:
            continue
