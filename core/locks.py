"""Locks that the kernel drops when their holder dies: on folders in the making, on one job at a time.

In: paths. Out: whether the lock is ours. ``flock`` on Linux and macOS; a file system without it gives None
or falls back to the age of what it looks at.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

STALE_S: Final = 24 * 3600.0
"""Age in seconds from which a leftover counts as abandoned where no lock tells."""


def new_locked_folder(name_one: Callable[[], Path]) -> tuple[Path, int | None]:
    """Make the folder that ``name_one`` names and lock it: (folder, handle to close when it is finished).

    The handle is None where folders cannot be locked. A sweep may come between the two steps: then once more,
    under another name.
    """
    while True:
        folder = name_one()
        folder.mkdir()
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            os.close(handle)
            return folder, None
        if folder.exists():
            return folder, handle
        os.close(handle)


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether no living process holds ``path``; it stays ours for the block. Plain files are judged by age."""
    try:
        old = time.time() - path.lstat().st_mtime >= STALE_S
        lockable = path.is_dir() and not path.is_symlink()
        handle = os.open(path, os.O_RDONLY) if lockable else None
    except OSError:
        yield False
        return
    if handle is None:
        yield old
        return
    try:
        yield _try_lock(handle, otherwise=old)
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` for the block; wait for another holder, after telling ``on_wait`` once.

    The file stays: removing it would let two processes hold two files of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(handle, otherwise=True):
            if on_wait:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, *, otherwise: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        return otherwise
    return True
