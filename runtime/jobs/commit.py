"""Folders of a job on disk, and the steps that make its files final.

    out/job.json  data/part-00000.parquet  errors/part-00000.jsonl  commits/00000.json  _tmp/  manifest.json

A shard counts when its commit file is there; the job counts when manifest.json is there, which is written last.
Every file is written aside, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ...core.errors import EXIT_MISMATCH, EnvironmentFault, InputError
from ...core.files import atomic_write_bytes, atomic_write_json, disk_faults, sha256_file

JOB: Final = "job.json"
MANIFEST: Final = "manifest.json"


class JobFolder:
    """One job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, job: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder and claim it by writing ``job.json``.

        Args:
            job: what the job is, for the record.
            overwrite: remove an earlier job first; anything else than a job is never removed.

        Raises:
            EnvironmentFault: 5008 the folder is not empty; 5004, 5005 the disk will not have it.
        """
        self.require_free(overwrite=overwrite)
        with disk_faults(self.path):
            if overwrite and self.path.exists():
                shutil.rmtree(self.path)
            for name in ("data", "errors", "commits", "_tmp"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            text = json.dumps(job, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            try:
                with (self.path / JOB).open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError as e:
                raise self._occupied() from e

    def require_free(self, *, overwrite: bool = False) -> None:
        """Refuse a place that holds something; with ``overwrite`` an earlier job does not count.

        Raises:
            EnvironmentFault: 5008.
        """
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if taken and not (overwrite and (self.path / JOB).is_file()):
            raise self._occupied()

    def part(self, number: int) -> Path:
        """Table of one shard."""
        return self.path / "data" / f"part-{number:05d}.parquet"

    def put(self, number: int, write: Callable[[Path], None], verify: Callable[[Path], None]) -> tuple[int, str]:
        """Write one shard's table aside, check it, move it into place. Returns its size and SHA-256."""
        final = self.part(number)
        aside = self.path / "_tmp" / final.name
        with disk_faults(final):
            write(aside)
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            verify(aside)
            size, digest = aside.stat().st_size, sha256_file(aside)
            aside.replace(final)
            _sync_folder(final.parent)
        return size, digest

    def put_errors(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Copies of a shard's error rows as JSONL; no file where there are none. Is valid input again."""
        if rows:
            text = "".join(json.dumps(r) + "\n" for r in rows)  # ASCII, so that lone surrogates survive as escapes
            atomic_write_bytes(self.path / "errors" / f"part-{number:05d}.jsonl", text.encode())

    def commit(self, number: int, facts: Mapping[str, Any]) -> None:
        """Declare a shard done."""
        atomic_write_json(self.path / "commits" / f"{number:05d}.json", dict(facts))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Declare the job done."""
        with disk_faults(self.path):
            shutil.rmtree(self.path / "_tmp", ignore_errors=True)
            if not any((self.path / "errors").iterdir()):
                (self.path / "errors").rmdir()
        atomic_write_json(self.path / MANIFEST, dict(manifest))

    def read_manifest(self) -> dict[str, Any]:
        """The manifest of a finished job.

        Raises:
            InputError: 2108 unfinished, or its manifest cannot be read.
        """
        path = self.path / MANIFEST
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
            _ = [(s["shard"], s["sha256"], s["bytes"]) for s in found["shards"]]
        except FileNotFoundError as e:
            what = "folder holds an unfinished job" if (self.path / JOB).exists() else "folder holds no frames"
            fix = "compress again into a new folder, or pass --overwrite"
            raise InputError(2108, what, where=str(self.path), expected=f"expected {MANIFEST}", fix=fix) from e
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as e:
            raise InputError(2108, "manifest of the job cannot be read", where=str(path), expected=str(e)) from e
        return found

    def _occupied(self) -> EnvironmentFault:
        what = "output folder is not empty" if self.path.is_dir() else "output is not a folder"
        fix = "choose another folder"
        if (self.path / JOB).is_file():
            what = "output folder already holds a job"
            fix = "choose another folder, or pass --overwrite to replace that job"
        expected = "expected an empty folder or none"
        where = str(self.path)
        return EnvironmentFault(5008, what, where=where, expected=expected, fix=fix, exit_code=EXIT_MISMATCH)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
