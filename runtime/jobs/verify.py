"""A finished job against what it says of itself: every record, file, hash, page and row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...core import disk
from ...core.errors import InputError, LatentWireError
from .commit import COMMITS, DATA, ERRORS, JOB, JobFolder
from .sealed import read_sealed
from .table import read_table
from .totals import SPREAD, Totals, without_spread

SHOWN: Final = 5


def verify_job(path: Path) -> dict[str, Any]:
    """Shards, rows, bytes and bad rows of a sound job.

    Raises:
        InputError: 2108 not finished, or something is not as it was when the job ended; the first faults are named.
    """
    folder = JobFolder(path)
    manifest = folder.read_manifest()
    faults = list(_faults(folder, manifest))
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        what = "the job is damaged"
        fix = "run the job's command again with --verify full: what is damaged is made again"
        raise InputError(2108, what, where=str(path), expected="; ".join(faults[:SHOWN]) + more, fix=fix)
    shards = manifest["shards"]
    return {
        "shards": len(shards),
        "rows": manifest["totals"]["rows"],
        "errors": manifest["totals"]["errors"],
        "bytes": sum(s["bytes"] + s["errors_bytes"] for s in shards),
        "fingerprint": manifest["fingerprint"],
    }


def _faults(folder: JobFolder, manifest: dict[str, Any]) -> Iterator[str]:
    shards = manifest["shards"]
    if [s["shard"] for s in shards] != list(range(manifest["shard_count"])):
        yield f"{folder.path}: shards of the manifest are not 0 to {manifest['shard_count'] - 1}"
        return
    yield from _record(folder.path / JOB, {k: v for k, v in manifest.items() if k not in ("shards", "totals", SPREAD)})
    first, totals = 0, Totals()
    for facts in shards:
        yield from _commit(folder.commit_file(facts["shard"]), facts, totals)
        yield from _table(folder.part(facts["shard"]), facts, first)
        if facts["errors"]:
            yield from _bytes(folder.errors_part(facts["shard"]), facts["errors_bytes"], facts["errors_sha256"])
        first += facts["rows"]
    if (totals.to_json(), totals.spread()) != (manifest["totals"], manifest.get(SPREAD)):
        yield f"{folder.path}: totals of the manifest are not the sum of its shards"
    yield from _strangers(folder, shards)


def _record(path: Path, wanted: dict[str, Any]) -> Iterator[str]:
    try:
        if read_sealed(path) != wanted:
            yield f"{path}: differs from the manifest"
    except (InputError, OSError) as e:
        yield str(e)


def _commit(path: Path, wanted: dict[str, Any], totals: Totals) -> Iterator[str]:
    try:
        found = read_sealed(path)
        if without_spread(found) != wanted:
            yield f"{path}: differs from the manifest"
        totals.add(found)
    except (InputError, OSError) as e:
        yield str(e)


def _bytes(path: Path, size: int, digest: str) -> Iterator[str]:
    try:
        data = disk.read_all(path)
    except OSError as e:
        yield f"{path}: {e.strerror}"
        return
    if (len(data), hashlib.sha256(data).hexdigest()) != (size, digest):
        yield f"{path}: expected {size} bytes with SHA-256 {digest}, got {len(data)} others"


def _table(path: Path, facts: dict[str, Any], first: int) -> Iterator[str]:
    wrong = list(_bytes(path, facts["bytes"], facts["sha256"]))
    if wrong:
        yield from wrong
        return
    codes: Counter[str] = Counter()
    try:
        rows = 0
        for row in read_table(path):
            if row.row_index != first + rows:
                yield f"{path}: expected row {first + rows}, got {row.row_index}"
                return
            codes.update([row.error_code] if row.message is None else [])
            rows += 1
    except LatentWireError as e:
        yield str(e)
        return
    if (rows, dict(sorted(codes.items()))) != (facts["rows"], facts["errors_by_code"]):
        yield f"{path}: expected {facts['rows']} rows and {facts['errors']} errors, got {rows} and {codes.total()}"


def _strangers(folder: JobFolder, shards: list[dict[str, Any]]) -> Iterator[str]:
    everything, bad = {s["shard"] for s in shards}, {s["shard"] for s in shards if s["errors"]}
    for kind, known in ((DATA, everything), (COMMITS, everything), (ERRORS, bad)):
        ours = {path.name for number, path in folder.numbers(kind).items() if number in known}
        for name in disk.names(folder.path / kind):
            if name not in ours:
                yield f"{folder.path / kind / name}: belongs to no shard"
