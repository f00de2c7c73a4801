"""One process at a time on one job folder.

The kernel drops the lock when its holder dies, however it dies, so none is ever stale. The file ``_LOCK`` stays:
removing it would let two processes hold two files of the same name. It says who holds it, for people and for
``jobs status``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ...core import disk
from ...core.errors import EXIT_IO, EXIT_LOCKED, EnvironmentFault

LOCK: Final = "_LOCK"


@dataclass(frozen=True)
class Holder:
    """Who holds, or last held, a lock; ``started`` tells two processes of one number apart (clock ticks, Linux)."""

    pid: int
    host: str
    started: int

    @property
    def alive(self) -> bool | None:
        """Whether that process still runs; None where another host would have to be asked."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return _started(self.pid) in (self.started, 0)


@contextmanager
def job_lock(folder: Path, *, sync: bool = True) -> Iterator[None]:
    """Hold the folder's lock for the block.

    Raises:
        EnvironmentFault: 5006 another process holds it (exit 75); 5007 this file system has no locks.
        OSError: the folder cannot be written.
    """
    handle = _hold(folder)
    try:
        me = Holder(os.getpid(), socket.gethostname(), _started(os.getpid()))
        with contextlib.suppress(OSError):  # only a remark for others
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(asdict(me)) + "\n").encode(), 0)
        if sync:
            disk.sync_folder(folder)
        yield
    finally:
        with contextlib.suppress(OSError):  # this process may live on without the lock
            os.ftruncate(handle, 0)
        disk.release_lock(handle)


def holder(folder: Path) -> Holder | None:
    """Who holds or last held the lock; None where nobody says so."""
    try:
        return Holder(**json.loads(disk.read_all(folder / LOCK, 1 << 12)))
    except (OSError, TypeError, ValueError):
        return None


def _hold(folder: Path) -> int:
    path = folder / LOCK
    while True:
        try:
            handle = disk.hold_lock(path)
        except BlockingIOError as e:
            raise _held(folder) from e
        except OSError as e:
            if e.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                raise
            what = "this file system cannot lock files"
            expected = f"expected one with flock, got: {e.strerror}"
            fix = "choose a folder on a local disk"
            raise EnvironmentFault(5007, what, where=str(path), expected=expected, fix=fix, exit_code=EXIT_IO) from e
        if _same(path, handle):
            return handle
        disk.release_lock(handle)  # somebody removed the file meanwhile


def _same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _held(folder: Path) -> EnvironmentFault:
    who = holder(folder)
    by = f", held by process {who.pid} on {who.host}" if who else ""
    what = f"another process works in this folder{by}"
    fix = "wait for it, stop it, or choose another folder"
    return EnvironmentFault(5006, what, where=str(folder), fix=fix, exit_code=EXIT_LOCKED)


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
