"""What a plan knows of single rows: files of text inputs, ids that stand again. A SQLite file, read by row number.

Most jobs need none. It is written once, before the job begins, and only read afterwards.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ...core import disk
from .ids import Again, sqlite_faults
from .storage import Stamp

_SETUP: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE member (input INTEGER, row INTEGER, name TEXT, size INTEGER, mark TEXT, PRIMARY KEY (input, row))
    WITHOUT ROWID;
CREATE TABLE again (row INTEGER PRIMARY KEY, rank INTEGER);
"""
_BLOCK: Final = 1024


class RowBook:
    """A book on the disk, for reading; opened for each question, so that workers and threads may share it.

    Raises:
        EnvironmentFault: 5004 it cannot be read or made. Of all methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self, number: int, row: int) -> Iterator[tuple[str, Stamp | None]]:
        """Files of input ``number`` from its row ``row`` on, and what they were like when they were planned."""
        query = "SELECT name, size, mark FROM member WHERE input = ? AND row >= ? ORDER BY row LIMIT ?"
        while found := self._ask(query, (number, row, _BLOCK)):
            for name, size, mark in found:
                yield name, Stamp(size, mark)
            row += len(found)

    def again(self, first: int, count: int) -> dict[int, int]:
        """Row number -> rank, of rows ``first`` to ``first + count`` whose id stood before."""
        return dict(self._ask("SELECT row, rank FROM again WHERE row >= ? AND row < ?", (first, first + count)))

    def save(self, path: Path) -> None:
        """Copy the book to where workers find it. Raises OSError."""
        with disk.NewFile(path) as target, self.path.open("rb") as source:
            while piece := source.read(disk.PIECE):
                target.write(piece)

    def _ask(self, query: str, values: tuple[int, ...]) -> list[Any]:
        uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        with sqlite_faults(), closing(sqlite3.connect(uri, uri=True)) as base:
            return base.execute(query, values).fetchall()


class BookWriter:
    """Makes a book among the temporary files; it goes when the book is no longer used."""

    def __init__(self) -> None:
        self._base: sqlite3.Connection | None = None
        self._book: RowBook | None = None

    def add_members(self, number: int, members: Iterable[tuple[str, Stamp]]) -> None:
        """Files of input ``number``, in order, as they are now."""
        rows = ((number, row, name, stamp.size, stamp.mark) for row, (name, stamp) in enumerate(members))
        with sqlite_faults():
            self._open().executemany("INSERT INTO member VALUES (?, ?, ?, ?, ?)", rows)

    def add_again(self, found: Iterable[Again]) -> None:
        """Rows whose id stood before."""
        rows = iter(found)
        while block := list(islice(rows, _BLOCK)):
            with sqlite_faults():
                self._open().executemany("INSERT INTO again VALUES (?, ?)", [(a.row, a.rank) for a in block])

    def close(self) -> RowBook | None:
        """The book; None where nothing was written."""
        if self._base is not None:
            with sqlite_faults():
                self._base.execute("COMMIT")
            self.abandon()
        return self._book

    def abandon(self) -> None:
        """Close what is open."""
        if self._base is not None:
            self._base.close()
            self._base = None

    def _open(self) -> sqlite3.Connection:
        if self._base is None:
            home = tempfile.mkdtemp(prefix="latentwire-")
            self._book = RowBook(Path(home, "rows.sqlite"))
            weakref.finalize(self._book, shutil.rmtree, home, ignore_errors=True)
            self._base = sqlite3.connect(str(self._book.path), isolation_level=None)
            self._base.executescript(_SETUP)
            self._base.execute("BEGIN")
        return self._base
