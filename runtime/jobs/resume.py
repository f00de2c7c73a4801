"""What a folder holds when a job begins on it: nothing, the same job half done, or something else.

In: a folder that this process has locked, and what the job is. Out: the shards that are done and sound; everything
else of an earlier run is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...core import disk
from ...core.errors import EXIT_MISMATCH, EnvironmentFault, InputError
from ..choices import VerifyName
from .commit import COMMITS, DATA, ERRORS, JOB, MANIFEST, PROGRESS, TMP, JobFolder, job_faults
from .fingerprint import differences
from .lock import LOCK
from .sealed import read_sealed
from .totals import Totals

OURS: Final = {LOCK, TMP}
"""What a run that was killed before it wrote job.json may have left."""


@dataclass(frozen=True)
class Opened:
    """A folder ready for the shards that are left.

    Attributes:
        job: the record of job.json.
        done: numbers of committed, sound shards.
        totals: sums over them.
        finished: the manifest of a job that has nothing left to do.
    """

    job: dict[str, Any]
    done: frozenset[int]
    totals: Totals
    finished: dict[str, Any] | None = None


def require_free(path: Path) -> None:
    """Refuse a place that holds something else than a job, before anything is made there.

    Raises:
        EnvironmentFault: 5008; 5004, 5005, 5007 the disk.
    """
    with job_faults(path):
        if not (path.exists() or path.is_symlink()):
            return
        if disk.is_folder(path):
            found = set(disk.names(path))
            # Asked after the listing: another process may have begun here while it was made.
            if found <= OURS or disk.size(path / JOB) is not None:
                return
    what = "output folder is not empty" if path.is_dir() else "output is not a folder"
    expected = "expected an empty folder, none, or the folder of the same job"
    fix = "choose another folder"
    raise EnvironmentFault(5008, what, where=str(path), expected=expected, fix=fix, exit_code=EXIT_MISMATCH)


def open_job(
    folder: JobFolder,
    facts: Mapping[str, Any],
    shards: int,
    attempt: str,
    *,
    overwrite: bool = False,
    verify: VerifyName = "size",
) -> Opened:
    """Claim the folder for a job, or find out how far that job has come.

    Args:
        folder: locked by this process.
        facts: what the job is; ``fingerprint`` among them.
        shards: how many it has.
        attempt: name of this run's folder below ``_tmp``.
        overwrite: remove another or a finished job first.
        verify: ``full`` reads what is committed and compares hashes; ``size`` compares sizes.

    Raises:
        EnvironmentFault: 5004, 5005, 5007, 5008.
        InputError: 2108 job.json is damaged; 2109 the folder holds another job.
    """
    require_free(folder.path)
    with job_faults(folder.path):
        disk.remove_tree(folder.path / TMP)
        # Before anything is made: a command that is refused leaves no trace.
        found = _own_job(folder, facts, overwrite)
        disk.make_folder(folder.path / TMP / attempt, sync=False)
        job = found or _claim(folder, facts, attempt)
        done, totals = _check(folder, job["fingerprint"], shards, verify)
        finished = _finished(folder, len(done) == shards)
        if finished is None:
            _remove_orphans(folder, done)
            for name in (DATA, ERRORS, COMMITS):
                disk.make_folder(folder.path / name, sync=False)
            if folder.sync:
                disk.sync_folder(folder.path)
                disk.sync_folder(folder.path.absolute().parent)
    return Opened(job, frozenset(done), totals, finished)


def is_sound(folder: JobFolder, facts: Mapping[str, Any], verify: VerifyName) -> bool:
    """The files of a committed shard are those that were committed."""
    number = facts["shard"]
    wanted = [(folder.part(number), facts["bytes"], facts["sha256"])]
    wanted += [(folder.errors_part(number), facts["errors_bytes"], facts["errors_sha256"])] if facts["errors"] else []
    for path, size, digest in wanted:
        if disk.size(path) != size:
            return False
        if verify == "full" and hashlib.sha256(disk.read_all(path)).hexdigest() != digest:
            return False
    return True


def _own_job(folder: JobFolder, facts: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """What the folder's job.json says, where it is this job's; None: the folder is free, now at the latest."""
    path = folder.path / JOB
    if disk.size(path) is not None:
        found, other = _compare(path, facts, overwrite)
        finished = disk.size(folder.path / MANIFEST) is not None
        if not other and not (overwrite and finished):
            return found
        if not overwrite:
            what = "the folder holds another job"
            fix = "choose another folder, or pass --overwrite to replace that job"
            raise InputError(2109, what, where=str(folder.path), expected="; ".join(other), fix=fix)
        _remove_job(folder)
    return None


def _claim(folder: JobFolder, facts: Mapping[str, Any], attempt: str) -> dict[str, Any]:
    new = {**facts, "fsync": folder.sync}
    folder.put_job(attempt, new)
    return new


def _compare(path: Path, facts: Mapping[str, Any], overwrite: bool) -> tuple[dict[str, Any], list[str]]:
    """The job of this folder, and how it differs from the one asked for."""
    try:
        found = read_sealed(path)
        same = found["fingerprint"] == facts["fingerprint"]
    except (InputError, KeyError):
        if not overwrite:
            raise
        return {}, ["job.json is damaged"]
    return found, [] if same else differences(found, facts) or ["fingerprint"]


def _remove_job(folder: JobFolder) -> None:
    """The manifest goes first and job.json stays until the next one replaces it: a kill leaves no half truth."""
    disk.remove(folder.path / MANIFEST)
    if folder.sync:
        disk.sync_folder(folder.path)
    for name in (COMMITS, DATA, ERRORS, PROGRESS):
        disk.remove_tree(folder.path / name)
    if folder.sync:
        disk.sync_folder(folder.path)


def _check(folder: JobFolder, fingerprint: str, shards: int, verify: VerifyName) -> tuple[dict[int, bool], Totals]:
    """Sound shards, each with whether it has error rows, and their sums. Commits that do not hold are removed."""
    done: dict[int, bool] = {}
    totals = Totals()
    for number, path in folder.numbers(COMMITS).items():
        try:
            facts = read_sealed(path)
            same = facts["fingerprint"] == fingerprint and facts["shard"] == number < shards
            # Without fsync a power cut may leave a file of the right size with other bytes.
            if same and is_sound(folder, facts, verify if facts["fsync"] else "full"):
                totals.add(facts)
                done[number] = facts["errors"] > 0
                continue
        except (InputError, KeyError, TypeError):
            pass  # sealed by somebody else's version: done again
        disk.remove(path)
    return done, totals


def _finished(folder: JobFolder, complete: bool) -> dict[str, Any] | None:
    """The manifest, if it is sound and so is everything it speaks of; else it is removed."""
    path = folder.path / MANIFEST
    if disk.size(path) is None:
        return None
    if complete:
        try:
            return folder.read_manifest()
        except InputError:
            pass  # the commits are sound, so it can be made again
    disk.remove(path)
    if folder.sync:
        disk.sync_folder(folder.path)
    return None


def _remove_orphans(folder: JobFolder, done: Mapping[int, bool]) -> None:
    for number, path in folder.numbers(DATA).items():
        if number not in done:
            disk.remove(path)
    for number, path in folder.numbers(ERRORS).items():
        if not done.get(number):
            disk.remove(path)
