"""Arrow record batches to rows: what Parquet files and Hugging Face datasets have in common."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from ...core.errors import InputError, LatentWireError, RowError
from .parse import decode, take_id
from .records import Fields, Record

FAULTS: Final = (pa.ArrowException, ValueError, KeyError, IndexError, OverflowError, MemoryError)
"""What pyarrow raises for damaged files, OSError apart; MemoryError where one declares a size beyond reason."""


def damaged(name: str, error: Exception) -> InputError:
    """2102 with the first line of what Arrow says."""
    said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return InputError(2102, "table is damaged", where=name, expected=said, fix="write or copy the file again")


class BatchRows:
    """Rows of one file that comes in record batches; see ``reader.RowReader``.

    Args:
        name: of the file.
        fields: columns.
    """

    def __init__(self, name: str, fields: Fields) -> None:
        self.name = name
        self._fields = fields
        self._columns: list[str] = []
        self._batches: Iterator[Any] = iter(())
        self._begun = False
        self._row = 0
        self._waiting: Iterator[Record] = iter(())
        self._until = 0  # first row that is not in this batch

    @abstractmethod
    def _batches_from(self, row: int) -> tuple[Iterator[Any], int]:
        """Batches that hold ``row``, and the number of the first one's first row."""

    @abstractmethod
    def _is_near(self, row: int) -> bool:
        """To skip forward to ``row`` costs less than to begin anew."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def tell(self) -> tuple[int, ...]:
        """Number of the next row, from 0."""
        return (self._row,)

    def seek(self, at: Sequence[int]) -> None:
        """Go on at row ``at[0]``."""
        row = at[0]
        if not self._begun or row < self._row or not self._is_near(row):
            with table_faults(self.name):
                self._batches, self._until = self._batches_from(row)
            self._begun, self._row, self._waiting = True, self._until, iter(())
        while self._until <= row and self._load():
            pass
        while self._row < row and next(self, None) is not None:
            pass

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if not self._begun:
            self.seek((0,))
        record = next(self._waiting, None)
        while record is None:
            if not self._load():
                raise StopIteration
            record = next(self._waiting, None)
        self._row += 1
        return record

    def _load(self) -> bool:
        """The next batch takes the place of this one."""
        with table_faults(self.name):
            batch = next(self._batches, None)
        if batch is None:
            self._row = self._until
            self._waiting = iter(())
            return False
        self._row = self._until
        self._until += len(batch)
        self._waiting = self._records(batch, self._row)
        return True

    def _records(self, batch: Any, first: int) -> Iterator[Record]:
        with table_faults(self.name):
            values = {c: _values(batch.column(c)) for c in self._columns}
        id_column = next((c for c in (self._fields.id, "id") if c in values), None)
        for offset in range(len(batch)):
            identifier = values[id_column][offset] if id_column else None
            kept = {c: values[c][offset] for c in self._fields.keep}
            yield _record(
                self.name, first + offset + 1, values[self._fields.text][offset], identifier, kept, self._fields
            )

    def _choose(self, schema: Any) -> None:
        """Take note of the columns to read. Raises InputError 2101."""
        fields = self._fields
        found = {field.name: field.type for field in schema}
        id_column = next((c for c in (fields.id, "id") if c in found), None)
        wrong = [fields.text] if not _is_text(found.get(fields.text)) else []
        if id_column and not (_is_text(found[id_column]) or pa.types.is_integer(found[id_column])):
            wrong.append(id_column)
        wrong += [c for c in fields.keep if c not in found]
        if wrong:
            got = ", ".join(f"{n} {t}" for n, t in found.items())
            wanted = ", ".join([f"{fields.text} string", *fields.keep])
            expected = f"expected {wanted} and perhaps {fields.id} string, got {got}"
            fix = "name the columns with --text-field, --id-field and --keep-columns"
            raise InputError(2101, "table has other columns", where=self.name, expected=expected, fix=fix)
        self._columns = list(dict.fromkeys([fields.text, *([id_column] if id_column else []), *fields.keep]))


class table_faults:  # noqa: N801  # reads as a statement
    """Turn what pyarrow raises into InputError 2102, or 2106 where the system refused to read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from .storage import is_url, unreadable

        if isinstance(error, LatentWireError):
            return
        # Arrow reports damaged pages and unreadable files with the same class; only the latter has an errno.
        if isinstance(error, OSError) and error.errno:
            raise unreadable(self._name, error) from error
        if isinstance(error, (*FAULTS, OSError)):
            raise damaged(self._name, error) from error
        if isinstance(error, Exception) and is_url(self._name):
            raise unreadable(self._name, error) from error


def _is_text(kind: Any) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(column: Any) -> list[Any]:
    """Strings as bytes, as nobody has looked yet whether they are UTF-8; the rest as Python has it."""
    if _is_text(column.type):
        column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    column.validate(full=True)
    found: list[Any] = column.to_pylist()
    return found


def _record(
    name: str, number: int, text: bytes | None, identifier: bytes | int | None, kept: dict[str, Any], fields: Fields
) -> Record:
    place = f"{name}:{number}"
    found: str | None = None
    columns: dict[str, str | None] = {}
    try:
        value = decode(identifier, place) if isinstance(identifier, bytes) else identifier
        found = take_id({"id": value}, "id", place)
        where = f"{place} (id {found})" if found else place
        columns = {c: _as_text(v, where) for c, v in kept.items()}
        if text is None:
            raise RowError(2004, f"field {fields.text!r} is not text", where=where, expected="expected text, got null")
        return Record(found or place, name, number, decode(text, where), columns=columns)
    except RowError as e:
        bad = Record(found or place, name, number, None, e, (text or b"")[:1000])
        return replace(bad, columns=columns or dict.fromkeys(kept))


def _as_text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    return decode(value, where) if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, default=str)
