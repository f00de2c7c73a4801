"""How far a job is, told from its folder alone and without its lock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ...core import disk
from ...core.errors import InputError
from .commit import COMMITS, JOB, MANIFEST, PROGRESS, JobFolder
from .lock import holder
from .sealed import read_sealed
from .totals import Totals

FINISHED: Final = "finished"
RUNNING: Final = "running"
STOPPED: Final = "stopped"
_SPEED: Final = ("rows_per_s", "tokens_per_s", "eta_s")


def read_status(path: Path) -> dict[str, Any]:
    """State, shards and rows; of a running job also its speed and how old that figure is, s.

    Counts are of committed shards; ``rows_now`` includes those that run, as the running process last told.

    Raises:
        InputError: 2108 no job is here, or job.json or the manifest is damaged.
    """
    folder = JobFolder(path)
    if disk.size(path / MANIFEST) is not None:
        manifest = folder.read_manifest()
        return _facts(manifest, FINISHED, len(manifest["shards"]), manifest["totals"])
    try:
        job = read_sealed(path / JOB)
    except OSError as e:
        what = "folder holds no job"
        raise InputError(2108, what, where=str(path), expected=f"expected {JOB}") from e
    shards, totals = _committed(folder)
    who = holder(path)
    alive = who.alive if who else False
    state = RUNNING if alive else STOPPED if alive is False else f"unknown: ask host {who.host if who else ''}"
    found = _facts(job, state, shards, totals.to_json())
    if alive:
        found |= {"pid": who.pid if who else None} | _progress(path)
    return found


def _facts(job: dict[str, Any], state: str, shards: int, totals: dict[str, Any]) -> dict[str, Any]:
    return {
        "state": state,
        "shards_done": shards,
        "shards_total": job["shard_count"],
        "rows_done": totals["rows"],
        "rows_error": totals["errors"],
        "rows_total": job["rows"],
        "wire_bytes": totals["wire_bytes"],
        "text_bytes": totals["text_bytes"],
        "fsync": job["fsync"],
    }


def _committed(folder: JobFolder) -> tuple[int, Totals]:
    totals, count = Totals(), 0
    for path in folder.numbers(COMMITS).values():
        try:
            totals.add(read_sealed(path))
        except (InputError, OSError, KeyError):
            continue  # damaged or just removed: it does not count
        count += 1
    return count, totals


def _progress(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(disk.read_all(path / PROGRESS, 1 << 16))
        return {"rows_now": found["rows_done"], **{k: found[k] for k in _SPEED}, "told": found["time"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
