"""Which rows have an id that another row had before. Digests of ids wait on the disk, so memory stays flat.

SQLite sorts them outside the memory: about 40 bytes a row, in the system's folder for temporary files.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from ...core.errors import EXIT_IO, EnvironmentFault

MARK: Final = "#"
"""Stands between an id and the rank of a row that has it again."""
_WAITING: Final = 4096
_SETUP: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -4096;
CREATE TABLE id (digest BLOB, row INTEGER);
CREATE TABLE numbered (digest BLOB, rank INTEGER, row INTEGER);
"""
_AGAIN: Final = """
SELECT digest, row, rank, first FROM (
    SELECT digest, row, ROW_NUMBER() OVER same AS rank, FIRST_VALUE(row) OVER same AS first
    FROM id WINDOW same AS (PARTITION BY digest ORDER BY row)
) WHERE rank > 1 ORDER BY row
"""
_CLASH: Final = f"SELECT n.row, a.row FROM numbered n JOIN ({_AGAIN}) a USING (digest, rank) ORDER BY a.row LIMIT 1"


class Again(NamedTuple):
    """A row whose id stood before.

    Attributes:
        row: its number in the job.
        rank: 2 for the second row with this id, and so on.
        first: number in the job of the first row with this id.
    """

    row: int
    rank: int
    first: int


class IdStore:
    """Ids of a job, added in input order.

    Raises:
        EnvironmentFault: 5004 no room for temporary files.
    """

    def __init__(self) -> None:
        with sqlite_faults():
            self._base = sqlite3.connect("", isolation_level=None)  # a file of SQLite's own, gone when it is closed
            self._base.executescript(_SETUP)
            self._base.execute("BEGIN")
        self._waiting: list[tuple[bytes, int]] = []
        self._numbered: list[tuple[bytes, int, int]] = []

    def add(self, identifier: str, row: int) -> None:
        """The id of row ``row``; rows come in order."""
        self._waiting.append((_digest(identifier), row))
        start, mark, rank = identifier.rpartition(MARK)
        if mark and len(rank) < 10 and rank.isascii() and rank.isdigit() and rank[0] != "0":
            self._numbered.append((_digest(start), int(rank), row))
        if len(self._waiting) == _WAITING:
            self._store()

    def forget(self, first_row: int) -> None:
        """Leave out all rows from this one on."""
        self._store()
        with sqlite_faults():
            self._base.execute("DELETE FROM id WHERE row >= ?", (first_row,))
            self._base.execute("DELETE FROM numbered WHERE row >= ?", (first_row,))

    def again(self) -> Iterator[Again]:
        """Rows whose id stood before, in order."""
        self._store()
        with sqlite_faults():
            for _, row, rank, first in self._base.execute(_AGAIN):
                yield Again(row, rank, first)

    def clash(self) -> tuple[int, int] | None:
        """A row called ``a7#2``, and the second row with the id ``a7``, if there are such two."""
        self._store()
        with sqlite_faults():
            found: tuple[int, int] | None = self._base.execute(_CLASH).fetchone()
            return found

    def close(self) -> None:
        """Remove the temporary files."""
        self._base.close()

    def _store(self) -> None:
        with sqlite_faults():
            self._base.executemany("INSERT INTO id VALUES (?, ?)", self._waiting)
            self._base.executemany("INSERT INTO numbered VALUES (?, ?, ?)", self._numbered)
        self._waiting.clear()
        self._numbered.clear()


def _digest(identifier: str) -> bytes:
    return hashlib.blake2b(identifier.encode(), digest_size=16).digest()


@contextmanager
def sqlite_faults() -> Iterator[None]:
    """Turn what SQLite says of the disk into EnvironmentFault 5004."""
    try:
        yield
    except sqlite3.OperationalError as e:
        what = "no room for temporary files"
        fix = "free some space, or name another folder with TMPDIR"
        raise EnvironmentFault(5004, what, where="plan of the job", expected=str(e), fix=fix, exit_code=EXIT_IO) from e
