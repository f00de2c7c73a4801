"""Names of inputs to a plan, or the reason why the whole job cannot run. Reads everything once, compresses nothing.

Memory does not grow with rows: ids wait on the disk, and a shard is known by the place where it begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from ...core.console import message
from ...core.errors import InputError, LatentWireError
from .ids import IdStore
from .inputs import Found, find_inputs
from .plan import SHARD_ROWS, InputFile, Plan, Shard
from .reader import RowReader, open_rows
from .records import Fields, Record
from .rowbook import BookWriter
from .storage import Stamp, open_binary, reading, stamp_of

SHARD_CHARACTERS: Final = 32 << 20
"""A shard ends after the row that brings its texts to this, so that long texts cannot fill the memory."""
FIRST_ROWS: Final = 100
"""If none of the first rows has a text, the field name is wrong, not the rows."""
_TOLD: Final = 256
SUFFIX: Final = "--on-duplicate-id suffix"
_SKIPPED: Final = (2101, 2102, 2103, 2106)


def make_plan(
    names: Sequence[str], fields: Fields, shard_rows: int = SHARD_ROWS, on_rows: Callable[[int], None] = lambda n: None
) -> Plan:
    """Read all input once.

    Args:
        names: files, folders, patterns, URLs.
        fields: columns and rules.
        shard_rows: most rows of a shard.
        on_rows: called with the number of rows read since the last call.

    Raises:
        InputError: 2004 no text in any of the first 100 rows; 2008 an id stands twice; 2101-2106, 2110.
        EnvironmentFault: 5004 no room for temporary files; 5011 a package for a kind of URL is missing.
    """
    ids, book = IdStore(), BookWriter()
    planner = _Planner(fields, shard_rows, on_rows, ids, book)
    try:
        for found in find_inputs(names):
            planner.add(found)
        if not planner.rows:
            raise InputError(2104, "no input", where=", ".join(names), expected="expected at least one row, got none")
        planner.settle_ids()
        return replace(planner.plan(), book=book.close())
    finally:
        ids.close()
        book.abandon()


class _Planner:
    def __init__(
        self, fields: Fields, shard_rows: int, on_rows: Callable[[int], None], ids: IdStore, book: BookWriter
    ) -> None:
        self._fields, self._shard_rows, self._on_rows, self._ids, self._book = fields, shard_rows, on_rows, ids, book
        self._files: list[InputFile] = []
        self._shards: list[Shard] = []
        self._skipped: list[str] = []
        self._first: list[LatentWireError | None] = []
        self._untold = 0
        self.rows = 0

    def plan(self) -> Plan:
        return Plan(
            tuple(self._files), tuple(self._shards), self._fields, self._shard_rows, skipped=tuple(self._skipped)
        )

    def add(self, found: Found) -> None:
        """One input, or nothing of it where it is damaged and that is borne."""
        rows, shards = self.rows, len(self._shards)
        try:
            self._add(found)
        except InputError as e:
            if self._fields.on_bad_file != "skip" or e.code not in _SKIPPED:
                raise
            message(f"skipped: {e}")
            self._skipped.append(found.name)
            self.rows, self._untold = rows, 0
            del self._shards[shards:]
            self._ids.forget(rows)

    def settle_ids(self) -> None:
        """Find ids that stand twice, and do with them as the user wants."""
        rule = self._fields.on_duplicate_id
        if rule == "error":
            for found in self._ids.again():
                raise self._duplicate(found.row, found.first, "expected ids to be unique, got {!r} twice")
            return
        clash = self._ids.clash() if rule == "suffix" else None
        if clash:
            raise self._duplicate(*clash, f"{{!r}} is what {SUFFIX} would make of another row's id")
        self._book.add_again(self._ids.again())

    def _duplicate(self, row: int, other: int, says: str) -> InputError:
        plan = replace(self.plan(), book=self._book.close(), fields=replace(self._fields, on_duplicate_id="error"))
        try:
            second, first = _record(plan, row), _record(plan, other)
        finally:
            plan.close()
        where = f"{second.source_file}:{second.source_row} and {first.source_file}:{first.source_row}"
        fix = "rename or drop one of the rows, or choose another rule with --on-duplicate-id"
        return InputError(2008, "duplicate id", where=where, expected=says.format(second.custom_id), fix=fix)

    def _add(self, found: Found) -> None:
        digest = hashlib.sha256()
        number, before = len(self._files), self.rows
        stamps = [(name, stamp_of(name)) for name in found.members]
        stamp = stamp_of(found.name) if not stamps else Stamp(sum(s.size for _, s in stamps), "")
        on_bytes = digest.update if found.kind in ("jsonl", "text") else None
        rows = open_rows(found.kind, found.name, self._fields, lambda row: iter(stamps[row:]), on_bytes)
        try:
            self._read(rows, number, before)
        finally:
            rows.close()
        if not on_bytes:
            _read_all(found.name, digest.update)
        if stamps:
            self._book.add_members(number, stamps)
        size, mark = stamp.size, stamp.mark
        self._files.append(InputFile(found.name, size, mark, digest.hexdigest(), self.rows - before, found.kind))

    def _read(self, rows: RowReader, number: int, before: int) -> None:
        """Rows of input ``number``, whose first one is row ``before`` of the job, to shards."""
        begin, at, size = self.rows, rows.tell(), 0
        for record in rows:
            self._note(record)
            size += len(record.text or "") + sum(len(c or "") for c in record.columns.values())
            if self.rows - begin == self._shard_rows or size >= SHARD_CHARACTERS:
                self._cut(number, before, begin, at)
                begin, at, size = self.rows, rows.tell(), 0
        if self.rows > begin:
            self._cut(number, before, begin, at)
        self._on_rows(self._untold)
        self._untold = 0

    def _note(self, record: Record) -> None:
        self._ids.add(record.custom_id, self.rows)
        if len(self._first) < FIRST_ROWS:
            self._first.append(record.error)
            _some_text(self._first)
        self.rows += 1
        self._untold += 1
        if self._untold == _TOLD:
            self._on_rows(_TOLD)
            self._untold = 0

    def _cut(self, number: int, before: int, begin: int, at: tuple[int, ...]) -> None:
        self._shards.append(Shard(len(self._shards), number, begin - before, self.rows - begin, begin, tuple(at)))


def _record(plan: Plan, row: int) -> Record:
    shard = next(s for s in plan.shards if s.first <= row < s.first + s.rows)
    return plan.read(shard)[row - shard.first]


def _some_text(first: Sequence[LatentWireError | None]) -> None:
    last = first[-1]
    if last is not None and len(first) == FIRST_ROWS and all(e is not None and e.code == 2004 for e in first):
        what = f"none of the first {FIRST_ROWS} rows has a text"
        raise InputError(2004, what, where=last.where, expected=last.expected, fix=last.fix)


def _read_all(name: str, on_bytes: Callable[[bytes], None]) -> None:
    """Once more for the digest: tables are not read in order."""
    file = open_binary(name)
    try:
        with reading(name):
            while piece := file.read(1 << 20):
                on_bytes(piece)
    finally:
        file.close()
