"""System calls that fail once, at a chosen place, in a chosen way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

from .simdisk import SimDisk

CRASH, NO_SPACE, IO_ERROR, SHORT, INTERRUPTED, LOSS = "crash", "ENOSPC", "EIO", "short", "EINTR", "loss"
KINDS: Final = (CRASH, NO_SPACE, IO_ERROR, SHORT, INTERRUPTED, LOSS)
_TAKES_SPACE: Final = {"open", "write", "mkdir", "rename"}


class Crash(BaseException):
    """The process is dead: nothing it does from here on has an effect."""


class FaultyDisk(SimDisk):
    """Call number ``at`` (from 0) fails; with ``at=None`` none does and ``log`` tells what was called.

    A full disk stays full. After a crash no call works any more.
    """

    def __init__(self, root: Path, kind: str = "", at: int | None = None) -> None:
        super().__init__(root)
        self.kind, self.at = kind, at
        self.log: list[str] = []
        self.dead = self.full = False

    def mended(self) -> FaultyDisk:
        """The same disk, in order again."""
        other = FaultyDisk(self.root)
        other.top = self.top
        return other

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        self._meet("open")
        return super().open(path, flags, mode)

    def read(self, handle: int, size: int) -> bytes:
        short = self._meet("read")
        return super().read(handle, max(1, size // 2 if size < 4096 else 1000) if short else size)

    def write(self, handle: int, data: memoryview) -> int:
        try:
            short = self._meet("write")
        except Crash:
            super().write(handle, data[: len(data) // 2])
            raise
        return super().write(handle, data[: max(1, len(data) // 2)] if short else data)

    def fsync(self, handle: int) -> None:
        self._meet("fsync")
        super().fsync(handle)

    def close(self, handle: int) -> None:
        try:
            self._meet("close")
        except OSError:
            super().close(handle)  # as Linux does: the handle is gone whatever close says
            raise
        super().close(handle)

    def flock(self, handle: int) -> None:
        self._meet("flock")
        super().flock(handle)

    def rename(self, source: str, target: str) -> None:
        self._meet("rename")
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._meet("unlink")
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self._meet("mkdir")
        super().mkdir(path)

    def rmdir(self, path: str) -> None:
        self._meet("rmdir")
        super().rmdir(path)

    def listdir(self, path: str) -> list[str]:
        self._meet("listdir")
        return super().listdir(path)

    def lstat(self, path: str) -> os.stat_result:
        self._meet("lstat")
        return super().lstat(path)

    def _meet(self, call: str) -> bool:
        """Count a call, and fail it if it is the one; True: take only part of the bytes."""
        if self.dead:
            raise Crash
        if self.full and call in _TAKES_SPACE:
            raise _error(errno.ENOSPC)
        self.log.append(call)
        if self.at is None or len(self.log) - 1 != self.at:
            return False
        if self.kind in (CRASH, LOSS):
            self.dead = True
            raise Crash
        if self.kind == NO_SPACE:
            self.full = True
            raise _error(errno.ENOSPC)
        if self.kind == IO_ERROR:
            raise _error(errno.EIO)
        if self.kind == INTERRUPTED:
            raise _error(errno.EINTR)
        return True


def applies(kind: str, call: str) -> bool:
    """Only reading and writing can be short."""
    return kind != SHORT or call in ("read", "write")


def _error(number: int) -> Any:
    return OSError(number, os.strerror(number))
