"""What a job will do, known before it starts: files with digests, rows, ids, shards.

In: file names. Out: a plan, or the reason why the whole job cannot run. Reads everything once, encodes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ...core.errors import InputError, LatentWireError
from ...core.files import atomic_write_json, sha256_file
from .reader import expand, read_rows
from .records import Fields, Record
from .streams import unreadable

SHARD_ROWS: Final = 4096
FIRST_ROWS: Final = 100
"""If none of the first rows has a text, the field name is wrong, not the rows."""


@dataclass(frozen=True)
class InputFile:
    """One file as it was when the plan was made."""

    name: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``start + rows`` of one file; ``first`` is the number of its first row in the job."""

    number: int
    file: int
    start: int
    rows: int
    first: int


@dataclass(frozen=True)
class Plan:
    """All files, all shards, in input order."""

    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    fields: Fields
    shard_rows: int

    @property
    def rows(self) -> int:
        """Rows of all files, bad ones included."""
        return sum(f.rows for f in self.files)

    def read(self, shard: Shard) -> list[Record]:
        """The rows of one shard.

        Raises:
            InputError: 2105 the file is not what was planned; others as ``read_rows``.
        """
        file = self.files[shard.file]
        self._check(file)
        rows = list(read_rows(file.name, self.fields, shard.start, shard.rows))
        self._check(file)
        if len(rows) != shard.rows:
            raise _changed(file, f"expected {shard.rows} rows from {shard.start + 1}, got {len(rows)}")
        return rows

    def save(self, path: Path) -> None:
        """Write the plan where workers find it."""
        atomic_write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The plan that ``save`` wrote; raises OSError, ValueError, KeyError, TypeError for anything else."""
        found = json.loads(path.read_bytes())
        files = tuple(InputFile(**f) for f in found["files"])
        return cls(files, tuple(Shard(**s) for s in found["shards"]), Fields(**found["fields"]), found["shard_rows"])

    def _check(self, file: InputFile) -> None:
        size, mtime_ns = _stat(file.name)
        if (size, mtime_ns) != (file.size, file.mtime_ns):
            raise _changed(file, f"expected {file.size} bytes, got {size}, or written again meanwhile")


def make_plan(
    names: Sequence[str], fields: Fields, shard_rows: int = SHARD_ROWS, on_row: Callable[[int], None] = lambda n: None
) -> Plan:
    """Read all input once.

    Args:
        names: files and folders.
        fields: columns.
        shard_rows: most rows of a shard.
        on_row: called with 1 for each row.

    Raises:
        InputError: 2004 no text in any of the first 100 rows; 2008 an id stands twice; 2101-2106, 2110.
    """
    seen: dict[bytes, tuple[int, int]] = {}
    files: list[InputFile] = []
    first: list[LatentWireError | None] = []
    for number, name in enumerate(expand(names)):
        size, mtime_ns = _stat(name)
        rows = 0
        for record in read_rows(name, fields):
            rows += 1
            _unique(seen, files, record, number)
            if len(first) < FIRST_ROWS:
                first.append(record.error)
                _some_text(first)
            on_row(1)
        files.append(InputFile(name, size, mtime_ns, sha256_file(name), rows))
    plan = Plan(tuple(files), tuple(_shards(files, shard_rows)), fields, shard_rows)
    if not plan.rows:
        raise InputError(2104, "no input", where=", ".join(names), expected="expected at least one row, got none")
    return plan


def _shards(files: Sequence[InputFile], shard_rows: int) -> list[Shard]:
    out: list[Shard] = []
    first = 0
    for number, file in enumerate(files):
        for start in range(0, file.rows, shard_rows):
            rows = min(shard_rows, file.rows - start)
            out.append(Shard(len(out), number, start, rows, first))
            first += rows
    return out


def _unique(seen: dict[bytes, tuple[int, int]], files: Sequence[InputFile], record: Record, number: int) -> None:
    key = hashlib.blake2b(record.custom_id.encode(), digest_size=16).digest()
    before = seen.setdefault(key, (number, record.source_row))
    if before != (number, record.source_row):
        name = files[before[0]].name if before[0] < len(files) else record.source_file
        where = f"{record.source_file}:{record.source_row} and {name}:{before[1]}"
        expected = f"expected ids to be unique, got {record.custom_id!r} twice"
        raise InputError(2008, "duplicate id", where=where, expected=expected, fix="rename or drop one of the rows")


def _some_text(first: Sequence[LatentWireError | None]) -> None:
    last = first[-1]
    if last is not None and len(first) == FIRST_ROWS and all(e is not None and e.code == 2004 for e in first):
        what = f"none of the first {FIRST_ROWS} rows has a text"
        raise InputError(2004, what, where=last.where, expected=last.expected, fix=last.fix)


def _stat(name: str) -> tuple[int, int]:
    try:
        found = Path(name).stat()
    except OSError as e:
        raise unreadable(name, e) from e
    return found.st_size, found.st_mtime_ns


def _changed(file: InputFile, expected: str) -> InputError:
    fix = "let nothing write to the input while the job runs, and start again"
    return InputError(2105, "input changed since the plan", where=file.name, expected=expected, fix=fix)
