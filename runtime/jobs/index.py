"""Which row of which table has an id: one SQLite file beside the tables of a finished job.

In: a job's folder. Out: rows by id, without reading the tables from their start.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

import pyarrow.parquet as pq

from ...core import disk
from ...core.errors import InputError
from .batches import table_faults
from .commit import JobFolder, job_faults
from .export_rows import replacing
from .ids import sqlite_faults
from .table import StoredRow, read_row

INDEX: Final = "index.sqlite"
_SETUP: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE job (fingerprint TEXT, hashes TEXT);
CREATE TABLE row (custom_id TEXT, shard INTEGER, row INTEGER);
BEGIN;
"""


class JobIndex:
    """The index of a job's folder.

    Raises:
        InputError: 2106 there is none; 2108 it was made for another state of the folder, or the job is not finished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = JobFolder(folder)
        self.path = folder / INDEX
        manifest = self._folder.read_manifest()
        fix = f"latentwire jobs index {folder}"
        if disk.size(self.path) is None:
            raise InputError(2106, "the job has no index", where=str(folder), expected=f"expected {INDEX}", fix=fix)
        try:
            with closing(self._open()) as base:
                found = base.execute("SELECT fingerprint, hashes FROM job").fetchone()
        except sqlite3.DatabaseError as e:
            found = (str(e),)
        if found != _state(manifest):
            what = "the index is damaged or of another job"
            raise InputError(2108, what, where=str(self.path), expected="expected the index of these tables", fix=fix)

    @classmethod
    def build(cls, folder: Path, on_rows: Callable[[int], None] = lambda n: None) -> Self:
        """Make the index of a finished job, in place of any older one.

        Raises:
            InputError: 2102 a table is damaged; 2108 the job is not finished.
            EnvironmentFault: 5004, 5005, 5007 the disk.
        """
        job = JobFolder(folder)
        manifest = job.read_manifest()
        with tempfile.TemporaryDirectory(prefix="latentwire-") as home:
            made = Path(home, INDEX)
            with sqlite_faults(), closing(sqlite3.connect(str(made), isolation_level=None)) as base:
                base.executescript(_SETUP)
                base.execute("INSERT INTO job VALUES (?, ?)", _state(manifest))
                for facts in manifest["shards"]:
                    number = facts["shard"]
                    rows = ((identifier, number, row) for identifier, row in _ids(job.part(number)))
                    base.executemany("INSERT INTO row VALUES (?, ?, ?)", rows)
                    on_rows(facts["rows"])
                base.execute("COMMIT")
                base.execute("CREATE INDEX by_id ON row (custom_id)")
            with made.open("rb") as source, job_faults(folder / INDEX), replacing(folder / INDEX) as target:
                while piece := source.read(disk.PIECE):
                    target.write(piece)
        return cls(folder)

    def find(self, identifier: str) -> StoredRow | None:
        """The row with an id, read and checked; None where there is none. Raises as ``table.read_table``."""
        with sqlite_faults(), closing(self._open()) as base:
            query = "SELECT shard, row FROM row WHERE custom_id = ? ORDER BY shard, row LIMIT 1"
            found = base.execute(query, (identifier,)).fetchone()
        return read_row(self._folder.part(found[0]), found[1]) if found else None

    def __len__(self) -> int:
        with sqlite_faults(), closing(self._open()) as base:
            return int(base.execute("SELECT COUNT(*) FROM row").fetchone()[0])

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)


def _state(manifest: dict[str, Any]) -> tuple[str, str]:
    """What changes when the tables do."""
    hashes = "".join(s["sha256"] for s in manifest["shards"])
    return manifest["fingerprint"], hashlib.sha256(hashes.encode()).hexdigest()


def _ids(path: Path) -> Iterator[tuple[str, int]]:
    with table_faults(str(path)), pq.ParquetFile(path, page_checksum_verification=True) as file:
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=["custom_id"]):
            for identifier in batch.column(0).to_pylist():
                yield identifier, row
                row += 1
