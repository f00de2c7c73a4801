"""One input file to rows, in order, with every unusable row in its place; reading can go on at any row found before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from ...core.errors import RowError
from .inputs import kind_of
from .parse import parse_object, take_columns, take_id, take_text, too_large
from .records import ROW_LIMIT, Fields, Record
from .storage import Stamp
from .streams import Line, LineReader, Place
from .text_folder import Member, TextRows


class RowReader(Protocol):
    """Rows of one input, from wherever ``seek`` went. Iterating raises what opening raises."""

    def tell(self) -> tuple[int, ...]:
        """Where the next row begins, for ``seek``."""

    def seek(self, at: Sequence[int]) -> None:
        """Go on at a place that ``tell`` gave, here or in another process."""

    def __iter__(self) -> Iterator[Record]: ...

    def close(self) -> None:
        """Close the file."""


def open_rows(
    kind: str,
    name: str,
    fields: Fields,
    members: Callable[[int], Iterable[Member]] | None = None,
    on_bytes: Callable[[bytes], None] | None = None,
) -> RowReader:
    """Rows of an input.

    Args:
        kind: ``jsonl``, ``parquet``, ``arrow`` or ``text``.
        name: of the file.
        fields: columns.
        members: the files of kind ``text``; None: the one file ``name``.
        on_bytes: hears the file's bytes while rows are read for the first time, if they come in order: not those of
            tables.

    Raises:
        InputError: 2101, 2102 (tables), 2103 (compressed), 2105 (text), 2106 unreadable.
    """
    if kind == "jsonl":
        return JsonlRows(name, fields, on_bytes)
    if kind == "text":
        alone: list[tuple[str, Stamp | None]] = [(name, None)]
        return TextRows(members or (lambda row: alone[row:]), fields, on_bytes)
    if kind == "parquet":
        from .parquet_input import ParquetRows

        return ParquetRows(name, fields)
    from .datasets_input import ArrowRows

    return ArrowRows(name, fields)


def read_rows(name: str, fields: Fields) -> Iterator[Record]:
    """All rows of one file. Raises as ``open_rows``."""
    rows = open_rows(kind_of(name), name, fields)
    try:
        yield from rows
    finally:
        rows.close()


class JsonlRows:
    """Rows of a JSONL file; see ``RowReader``."""

    def __init__(self, name: str, fields: Fields, on_bytes: Callable[[bytes], None] | None = None) -> None:
        self._name, self._fields = name, fields
        self._lines = LineReader(name, ROW_LIMIT, on_bytes)

    def tell(self) -> tuple[int, ...]:
        """A ``streams.Place``."""
        return self._lines.tell()

    def seek(self, at: Sequence[int]) -> None:
        """Go on there."""
        self._lines.seek(Place(*at))

    def __iter__(self) -> Iterator[Record]:
        for line in self._lines:
            yield _row(self._name, self._fields, line)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _row(name: str, fields: Fields, line: Line) -> Record:
    place = f"{name}:{line.number}"
    identifier: str | None = None
    columns: dict[str, str | None] = {}
    try:
        if line.size > ROW_LIMIT:
            raise too_large(line.size, ROW_LIMIT, place)
        row = parse_object(line.data, place, ended=line.ended)
        identifier = take_id(row, fields.id, place)
        where = f"{place} (id {identifier})" if identifier else place
        columns = take_columns(row, fields.keep, where)
        return Record(identifier or place, name, line.number, take_text(row, fields.text, where), columns=columns)
    except RowError as e:
        bad = Record(identifier or place, name, line.number, None, e, line.data[:1000])
        return replace(bad, columns=columns or dict.fromkeys(fields.keep))
