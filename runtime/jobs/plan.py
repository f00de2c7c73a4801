"""What a job will do, known before it starts: inputs with digests, shards with the places where reading begins.

In: a plan, as ``planner.make_plan`` made it. Out: the rows of any shard, wherever it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from ...core.errors import RowError
from ...core.files import atomic_write_json
from .ids import MARK
from .reader import RowReader, open_rows
from .records import Fields, Record
from .rowbook import RowBook
from .storage import Stamp, stamp_of
from .text_folder import changed

SHARD_ROWS: Final = 4096
BOOK: Final = ".rows"
"""Ending of the row book that lies beside a saved plan."""


@dataclass(frozen=True)
class InputFile:
    """One input as it was when the plan was made.

    Attributes:
        name: of the file; of the first one where several text files are one input.
        size: bytes.
        mark: see ``storage.Stamp``; empty for text files, which have one each.
        sha256: of its bytes.
        rows: how many it has.
        kind: see ``inputs.Found``.
    """

    name: str
    size: int
    mark: str
    sha256: str
    rows: int
    kind: str


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``start + rows`` of one input; ``first`` is the number of its first row in the job.

    ``at`` is where reading begins, see ``reader.RowReader``.
    """

    number: int
    file: int
    start: int
    rows: int
    first: int
    at: tuple[int, ...] = ()


@dataclass
class _Open:
    """The input that was read last, and the number of the row that comes next."""

    file: int
    row: int
    rows: RowReader
    records: Iterator[Record]


@dataclass(frozen=True)
class Plan:
    """All inputs, all shards, in input order.

    An input stays open between shards, as neighbours are mostly read by the same process: one that cannot be entered
    in the middle (a compressed file of one piece) is then read once by each process, not once for each shard.
    """

    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    fields: Fields
    shard_rows: int
    skipped: tuple[str, ...] = ()
    book: RowBook | None = field(default=None, compare=False, repr=False)
    _open: list[_Open] = field(default_factory=list, compare=False, repr=False)

    @property
    def rows(self) -> int:
        """Rows of all files, bad ones included."""
        return sum(f.rows for f in self.files)

    def read(self, shard: Shard) -> list[Record]:
        """The rows of one shard.

        Raises:
            InputError: 2105 the file is not what was planned; others as ``reader.open_rows``.
        """
        file = self.files[shard.file]
        self._check(file)
        try:
            rows = list(self._records(shard))
        except BaseException:
            self.close()
            raise
        self._check(file)
        if len(rows) != shard.rows:
            self.close()
            raise changed(file.name, f"expected {shard.rows} rows from {shard.start + 1}, got {len(rows)}")
        return self._renamed(shard, rows)

    def close(self) -> None:
        """Close the input that is open, if any."""
        for opened in self._open:
            opened.rows.close()
        self._open.clear()

    def save(self, path: Path) -> None:
        """Write the plan where workers find it. Raises OSError, EnvironmentFault 5004, 5005, 5007."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("book", "_open")}
        plain = {**own, "files": [asdict(f) for f in self.files], "shards": [_line(s) for s in self.shards]}
        atomic_write_json(path, {**plain, "fields": asdict(self.fields), "book": self.book is not None})
        if self.book:
            self.book.save(path.with_name(path.name + BOOK))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The plan that ``save`` wrote; raises OSError, ValueError, KeyError, TypeError for anything else."""
        found = json.loads(path.read_bytes())
        files = tuple(InputFile(**f) for f in found["files"])
        shards = tuple(Shard(n, f, start, rows, first, tuple(at)) for n, f, start, rows, first, at in found["shards"])
        book = RowBook(path.with_name(path.name + BOOK)) if found["book"] else None
        return cls(files, shards, Fields(**found["fields"]), found["shard_rows"], tuple(found["skipped"]), book)

    def _records(self, shard: Shard) -> Iterator[Record]:
        opened = next((o for o in self._open if o.file == shard.file), None)
        if opened is None:
            self.close()
            opened = self._begin(shard.file)
        if opened.row != shard.start:
            opened.rows.seek(shard.at)
            opened.row, opened.records = shard.start, iter(opened.rows)
        for _ in range(shard.rows):
            record = next(opened.records, None)
            if record is None:
                return
            opened.row += 1
            yield record

    def _begin(self, number: int) -> _Open:
        file, book = self.files[number], self.book
        members = (lambda row: book.members(number, row)) if book and file.kind == "text" else None
        rows = open_rows(file.kind, file.name, self.fields, members)
        self._open.append(_Open(number, 0, rows, iter(rows)))
        return self._open[0]

    def _renamed(self, shard: Shard, rows: list[Record]) -> list[Record]:
        """Rows whose id stood before get another name, or an error."""
        again = self.book.again(shard.first, shard.rows) if self.book else {}
        for number, rank in again.items():
            record = rows[number - shard.first]
            if self.fields.on_duplicate_id == "suffix":
                rows[number - shard.first] = replace(record, custom_id=suffixed(record.custom_id, rank))
            else:
                expected = f"this is row {rank} with the id {record.custom_id!r}"
                error = RowError(2008, "duplicate id", where=record.where, expected=expected)
                rows[number - shard.first] = replace(record, error=record.error or error)
        return rows

    def _check(self, file: InputFile) -> None:
        if file.kind != "text" and (found := stamp_of(file.name)) != Stamp(file.size, file.mark):
            raise changed(file.name, f"expected {file.size} bytes, got {found.size}, or written again meanwhile")


def suffixed(identifier: str, rank: int) -> str:
    """``a7#2``: the second row with the id ``a7``."""
    return f"{identifier}{MARK}{rank}"


def _line(shard: Shard) -> list[object]:
    return [shard.number, shard.file, shard.start, shard.rows, shard.first, list(shard.at)]
