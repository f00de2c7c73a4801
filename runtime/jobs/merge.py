"""Several finished jobs to one: their tables one after the other, with rows numbered through.

In: folders of finished jobs of one encoder. Out: a folder that is a finished job like any other.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...core import disk
from ...core.errors import InputError, ModelError
from .commit import JobFolder, job_faults
from .ids import IdStore
from .lock import job_lock
from .resume import open_job, require_free
from .sealed import canonical, plain
from .shard import verify_table
from .source import open_source
from .table import FORMAT, VERSION, TableInfo, change_rows, read_info, read_table
from .totals import SPREAD, make_manifest

_OWN = ("shard", "fingerprint", "fsync", "bytes", "sha256", "errors_bytes", "errors_sha256")


def merge_jobs(folders: Sequence[Path], out: Path, on_rows: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
    """Merge jobs into a new folder. Returns the manifest. A merge that was stopped goes on when it is called again.

    Raises:
        InputError: 2008 two rows have one id; 2102, 2108 a job is damaged or unfinished; 2109, 5008 ``out`` holds
            something else; 2113 the jobs were made with different options.
        ModelError: 3101 they were made with different encoders.
        EnvironmentFault: 5004, 5005, 5006, 5007.
    """
    require_free(out)
    jobs = [(JobFolder(f), JobFolder(f).read_manifest()) for f in folders]
    info = _same_table(folders)
    _unique_ids(folders)
    parts = [(job, facts) for job, manifest in jobs for facts in manifest["shards"]]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "table": {k: v for k, v in asdict(info).items() if k != "rows"},
        "merged": [{"fingerprint": m["fingerprint"], "rows": m["rows"]} for _, m in jobs],
        "shard_count": len(parts),
        "rows": sum(m["rows"] for _, m in jobs),
    }
    facts = {**plain(facts), "fingerprint": hashlib.sha256(canonical(facts)).hexdigest()}
    folder, attempt = JobFolder(out), secrets.token_hex(4)
    with job_faults(out):
        disk.make_folder(out, sync=True)
    with job_lock(out, sync=True):
        opened = open_job(folder, facts, len(parts), attempt, overwrite=False, verify="full")
        if opened.finished is None:
            first = 0
            for number, (job, shard) in enumerate(parts):
                if number not in opened.done:
                    _copy(job, shard, folder, number, attempt, first, facts["fingerprint"])
                first += shard["rows"]
                on_rows(shard["rows"])
            manifest = make_manifest(opened.job, (folder.read_commit(number) for number in range(len(parts))))
            folder.finish(attempt, manifest)
        else:
            manifest = opened.finished
        folder.clean()
    return manifest


def _same_table(folders: Sequence[Path]) -> TableInfo:
    infos = [replace(read_info(table), rows=0) for folder in folders for table in open_source(folder).tables]
    for info in infos:
        if info.encoder != infos[0].encoder:
            what = "the jobs were made with different encoders"
            expected = f"expected {infos[0].encoder}, got {info.encoder}"
            fix = "compress one of them again with the other one's bundle"
            raise ModelError(3101, what, where=", ".join(map(str, folders)), expected=expected, fix=fix)
        if info != infos[0]:
            old, new = asdict(infos[0]), asdict(info)
            expected = "; ".join(f"{k}: {old[k]} and {new[k]}" for k in old if old[k] != new[k])
            what, fix = "the jobs were made with different options", "compress one of them again with the other's"
            raise InputError(2113, what, where=", ".join(map(str, folders)), expected=expected, fix=fix)
    return infos[0]


def _unique_ids(folders: Sequence[Path]) -> None:
    ids = IdStore()
    try:
        rows = 0
        for folder in folders:
            for table in open_source(folder).tables:
                for row in read_table(table):
                    ids.add(row.custom_id, rows)
                    rows += 1
        for found in ids.again():
            where = f"row {found.row} and row {found.first} of {', '.join(map(str, folders))} together"
            fix = "compress one of them again, with other ids"
            raise InputError(2008, "duplicate id", where=where, expected="expected ids to be unique", fix=fix)
    finally:
        ids.close()


def _copy(
    job: JobFolder, shard: dict[str, Any], folder: JobFolder, number: int, attempt: str, first: int, fingerprint: str
) -> None:
    old = shard["shard"]
    source, target = job.part(old), folder.part(number)
    with job_faults(source):
        spread = job.read_commit(old).get(SPREAD)
        errors = disk.read_all(job.errors_part(old)) if shard["errors"] else b""
    facts = {
        **{k: v for k, v in shard.items() if k not in _OWN},
        SPREAD: spread,
        "shard": number,
        "fingerprint": fingerprint,
        "fsync": True,
        **folder.put_table(
            number,
            attempt,
            lambda file: change_rows(source, file, first),
            lambda data: verify_table(data, shard["rows"], target),
        ),
        **folder.put_errors(number, attempt, [json.loads(line) for line in errors.splitlines()]),
    }
    folder.commit(number, attempt, facts)
