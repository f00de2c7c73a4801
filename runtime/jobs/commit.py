"""Folders of a job on disk, and the steps that make its files final.

    out/job.json  _LOCK  data/part-00000.parquet  errors/part-00000.jsonl  commits/00000.json
        _tmp/ATTEMPT/  _progress.json  manifest.json

A shard counts when its commit record is there; the job counts when manifest.json is there, which is written last.
Every file is written aside, flushed to the disk, moved into place, and its folder flushed, before the next begins
that relies on it. No file is ever opened for writing where it will stand.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ...core import disk
from ...core.errors import EXIT_IO, EnvironmentFault, InputError
from ...core.files import as_fault
from .sealed import read_sealed, seal

JOB: Final = "job.json"
MANIFEST: Final = "manifest.json"
PROGRESS: Final = "_progress.json"
DATA, ERRORS, COMMITS, TMP = "data", "errors", "commits", "_tmp"
_PATTERNS: Final = {
    DATA: re.compile(r"part-(\d{5,})\.parquet"),
    ERRORS: re.compile(r"part-(\d{5,})\.jsonl"),
    COMMITS: re.compile(r"(\d{5,})\.json"),
}


class JobFolder:
    """One job's folder.

    Args:
        path: the folder.
        sync: False: leave it to the system when files reach the disk.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self.sync = sync

    def part(self, number: int) -> Path:
        """Table of one shard."""
        return self.path / DATA / f"part-{number:05d}.parquet"

    def errors_part(self, number: int) -> Path:
        """Error rows of one shard, where it has any."""
        return self.path / ERRORS / f"part-{number:05d}.jsonl"

    def commit_file(self, number: int) -> Path:
        """Commit record of one shard."""
        return self.path / COMMITS / f"{number:05d}.json"

    def numbers(self, kind: str) -> dict[int, Path]:
        """Shard number -> file, for all files of ``data``, ``errors`` or ``commits`` that are named as ours are."""
        folder = self.path / kind
        found = {name: _PATTERNS[kind].fullmatch(name) for name in disk.names(folder)}
        return {int(match[1]): folder / name for name, match in found.items() if match}

    def put_table(
        self, number: int, attempt: str, write: Callable[[BinaryIO], None], verify: Callable[[bytes], None]
    ) -> dict[str, Any]:
        """Write one shard's table aside, read it back, check it, move it into place. Returns its size and hash.

        Raises:
            EnvironmentFault: 5004, 5005, 5007; what ``verify`` raises.
        """
        final = self.part(number)
        with job_faults(final):
            aside = self._aside(attempt, final.name)
            with disk.NewFile(aside) as file:
                write(cast(BinaryIO, file))
                if self.sync:
                    file.sync()
            data = disk.read_all(aside)
            verify(data)
            self._place(aside, final)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def put_errors(self, number: int, attempt: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Copies of a shard's error rows as JSONL; no file where there are none. Is valid input again."""
        if not rows:
            return {"errors_bytes": 0, "errors_sha256": ""}
        # ASCII, so that lone surrogates survive as escapes.
        data = "".join(json.dumps(r) + "\n" for r in rows).encode()
        self._put(self.errors_part(number), attempt, data)
        return {"errors_bytes": len(data), "errors_sha256": hashlib.sha256(data).hexdigest()}

    def commit(self, number: int, attempt: str, facts: Mapping[str, Any]) -> None:
        """Declare a shard done: from here on it is never run again."""
        self._put(self.commit_file(number), attempt, seal(facts))

    def put_job(self, attempt: str, facts: Mapping[str, Any]) -> None:
        """Say what job this folder holds."""
        self._put(self.path / JOB, attempt, seal(facts))

    def finish(self, attempt: str, manifest: Mapping[str, Any]) -> None:
        """Declare the job done. Everything else must be there; nothing is written after this.

        Raises:
            EnvironmentFault: 5004, 5005, 5007.
        """
        with job_faults(self.path):
            aside = self._aside(attempt, MANIFEST)
            disk.write_new(aside, seal(manifest), sync=self.sync)
            if not disk.names(self.path / ERRORS):
                disk.remove_tree(self.path / ERRORS)
            if self.sync:  # files that an earlier, killed run moved into place are not on the disk for certain
                for name in (DATA, ERRORS, COMMITS):
                    if disk.is_folder(self.path / name):
                        disk.sync_folder(self.path / name)
                disk.sync_folder(self.path)
            self._place(aside, self.path / MANIFEST)

    def clean(self) -> None:
        """Remove what no finished job has; leaves it where the disk refuses, as it harms nobody."""
        for name in (TMP, PROGRESS):
            try:
                disk.remove_tree(self.path / name)
            except OSError:
                return

    def put_progress(self, attempt: str, facts: Mapping[str, Any]) -> None:
        """What ``jobs status`` shows of a running job. Best effort: a full disk must not stop the job here."""
        try:
            aside = self._aside(attempt, PROGRESS)
            disk.write_new(aside, (json.dumps(facts, sort_keys=True) + "\n").encode(), sync=False)
            disk.rename(aside, self.path / PROGRESS)
        except OSError:
            return

    def read_manifest(self) -> dict[str, Any]:
        """The manifest of a finished job.

        Raises:
            InputError: 2108 unfinished, or its manifest is damaged.
        """
        path = self.path / MANIFEST
        try:
            found = read_sealed(path)
            _ = [(s["shard"], s["sha256"], s["bytes"]) for s in found["shards"]]
        except FileNotFoundError as e:
            what = "folder holds an unfinished job" if disk.size(self.path / JOB) else "folder holds no frames"
            fix = "run the same command again: it goes on where it stopped"
            raise InputError(2108, what, where=str(self.path), expected=f"expected {MANIFEST}", fix=fix) from e
        except (OSError, KeyError, TypeError) as e:
            raise InputError(2108, "manifest of the job cannot be read", where=str(path), expected=str(e)) from e
        return found

    def read_commit(self, number: int) -> dict[str, Any]:
        """One commit record. Raises FileNotFoundError, OSError, InputError 2108."""
        return read_sealed(self.commit_file(number))

    def _put(self, final: Path, attempt: str, data: bytes) -> None:
        with job_faults(final):
            aside = self._aside(attempt, final.name)
            disk.write_new(aside, data, sync=self.sync)
            self._place(aside, final)

    def _aside(self, attempt: str, name: str) -> Path:
        """A name that no other attempt at the same shard has, on whatever machine it runs."""
        return self.path / TMP / attempt / f"{name}.{secrets.token_hex(4)}"

    def _place(self, aside: Path, final: Path) -> None:
        disk.rename(aside, final)
        if self.sync:
            disk.sync_folder(final.parent)


@contextmanager
def job_faults(path: Path) -> Iterator[None]:
    """Turn OSErrors of the body into EnvironmentFault 5004, 5005 or 5007 that name ``path``."""
    try:
        yield
    except OSError as e:
        fix = "nobody else may change the folder while the job runs; the same command goes on from here"
        fault = as_fault(e, path) or EnvironmentFault(
            5007,
            "a file of the job cannot be worked with",
            where=str(path),
            expected=str(e),
            fix=fix,
            exit_code=EXIT_IO,
        )
        raise fault from e
