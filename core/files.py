"""Files that are either whole or not there: hashes, atomic writes, disk faults.

In: paths and bytes. Out: files. Knows nothing of models, bundles or jobs.

Every write goes to a hidden sibling (``.NAME.tmp-XXXX``), is flushed to the disk and then renamed. A process
that is killed leaves at most such a sibling; ``sweep_leftovers`` removes it later, and never one in use.

Errors: EnvironmentFault 5004 (disk full, quota or file-size limit; exit 74), 5005 (read-only or not
permitted; exit 74), 5007 (the disk failed; exit 74), 5008 (the destination already exists).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from . import disk
from .errors import EXIT_IO, EnvironmentFault
from .locks import claim, new_locked_folder

CHUNK: Final = 1 << 20
"""Bytes read at a time."""

_FULL: Final = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED: Final = {errno.EROFS, errno.EACCES, errno.EPERM}
_BROKEN: Final = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, getattr(errno, "EUCLEAN", errno.EIO)}


def sha256_file(path: str | os.PathLike[str], on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, 64 hex digits; ``on_bytes`` hears the size of every block read, in bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(CHUNK):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def as_fault(error: OSError, path: str | os.PathLike[str] | None = None) -> EnvironmentFault | None:
    """The EnvironmentFault that explains an ``OSError`` (5004, 5005, 5007), or None where it is some other fault."""
    where = str(path if path is not None else (error.filename or ""))
    if error.errno in _FULL:
        free = _free_bytes(where)
        return EnvironmentFault(
            5004,
            "no space left to write",
            where=where,
            expected=f"{error.strerror}" + ("" if free is None else f", {human_bytes(free)} free"),
            fix="free some space or choose another disk; nothing half-written is left behind",
            exit_code=EXIT_IO,
        )
    if error.errno in _DENIED:
        return EnvironmentFault(
            5005,
            "cannot write here",
            where=where,
            expected=f"a folder this user may write to, got: {error.strerror}",
            fix="choose another folder or change its permissions",
            exit_code=EXIT_IO,
        )
    if error.errno in _BROKEN:
        return EnvironmentFault(
            5007,
            "the disk failed",
            where=where,
            expected=f"a sound disk, got: {error.strerror}",
            fix="look at the system's log; copy what is there to another disk before going on",
            exit_code=EXIT_IO,
        )
    return None


@contextmanager
def disk_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn disk-full, permission and device errors of the body into EnvironmentFault 5004, 5005 or 5007."""
    try:
        yield
    except OSError as error:
        fault = as_fault(error, path)
        if fault is None:
            raise
        raise fault from error


def require_space(folder: str | os.PathLike[str], needed: int) -> None:
    """Raise EnvironmentFault 5004 unless ``needed`` bytes are free where ``folder`` is or will be."""
    free = _free_bytes(folder)
    if free is not None and free < needed:
        raise EnvironmentFault(
            5004,
            "not enough disk space",
            where=str(folder),
            expected=f"{human_bytes(needed)} free, got {human_bytes(free)}",
            fix="free some space or choose another disk",
            exit_code=EXIT_IO,
        )


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one.

    Raises EnvironmentFault 5004, 5005 or 5007.
    """
    target = Path(path)
    with disk_faults(target):
        disk.make_folder(target.parent, sync=True)
        temporary = _sibling(target)
        try:
            disk.write_new(temporary, data, sync=True)
            disk.rename(temporary, target)
        except BaseException:
            with suppress(OSError):
                disk.remove(temporary)
            raise
        disk.sync_folder(target.parent)


def atomic_write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as JSON (sorted keys, two spaces, closing newline), atomically."""
    text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(path, (text + "\n").encode())


@contextmanager
def atomic_folder(dest: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty hidden sibling of ``dest``; when the body ends well it becomes ``dest``, else it is removed.

    Any exception, KeyboardInterrupt included, removes it. With ``overwrite`` an older folder is moved aside
    first and deleted last; without, it must be absent or empty (EnvironmentFault 5008).
    Raises 5004 and 5005 for disk faults of the body and of this function.
    """
    target = Path(dest).absolute()
    _require_absent(target, overwrite)
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(target)
        temporary, lock = new_locked_folder(lambda: _sibling(target))
        try:
            yield temporary
            _fsync_tree(temporary)
            _require_absent(target, overwrite)
            _move_into_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)
        disk.sync_folder(target.parent)


def sweep_leftovers(dest: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed processes left beside ``dest``; folders that a living process holds stay.

    Returns the paths removed. Silent: a leftover is our own litter, not the user's concern.
    """
    target = Path(dest).absolute()
    removed = []
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        with claim(leftover) as ours:
            if not ours:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            removed.append(leftover)
    return removed


def human_bytes(count: float) -> str:
    """``538.1 MB``: decimal units, one digit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sibling(target: Path) -> Path:
    return target.parent / f".{target.name}.tmp-{secrets.token_hex(4)}"


def _free_bytes(path: str | os.PathLike[str]) -> int | None:
    """Bytes free on the disk of ``path`` or of its nearest existing parent; None where that is unknown."""
    folder = Path(path).absolute()
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _require_absent(target: Path, overwrite: bool) -> None:
    if overwrite or not os.path.lexists(target):
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    raise EnvironmentFault(
        5008,
        "destination already exists",
        where=str(target),
        expected="a path that does not exist or an empty folder",
        fix="choose another path or remove it first",
    )


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename; an older folder steps aside for the moment between two renames."""
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = _sibling(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if not path.is_symlink():
                with path.open("rb+") as handle:
                    os.fsync(handle.fileno())
        disk.sync_folder(Path(root))
