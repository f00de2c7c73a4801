"""Rows of a Parquet file that has a text column and perhaps an id column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import InputError, RowError
from .parse import decode, take_id
from .records import Fields, Record
from .streams import unreadable

FAULTS: Final = (pa.ArrowException, ValueError, KeyError, IndexError, OverflowError)
"""What pyarrow raises for damaged files, OSError apart."""


def read_parquet(name: str, fields: Fields, start: int, stop: int | None) -> Iterator[Record]:
    """Rows ``start`` to ``stop`` (from 0); page checksums are verified where the file has them.

    Raises:
        InputError: 2101 a column is missing or of a wrong type; 2102 damaged; 2106 unreadable.
    """
    try:
        with pq.ParquetFile(name, page_checksum_verification=True) as file:
            column, id_column = _columns(name, file.schema_arrow, fields)
            index = 0
            for batch in file.iter_batches(batch_size=256, columns=[c for c in (column, id_column) if c]):
                if stop is not None and index >= stop:
                    return
                if index + len(batch) > start:
                    for row in _rows(name, batch, column, id_column, index):
                        if row.source_row > start and (stop is None or row.source_row <= stop):
                            yield row
                index += len(batch)
    except FAULTS as e:
        raise damaged(name, e) from e
    except OSError as e:
        # Arrow reports damaged pages and unreadable files with the same class; only the latter has an errno.
        raise (unreadable(name, e) if e.errno else damaged(name, e)) from e


def damaged(name: str, error: Exception) -> InputError:
    """2102 with the first line of what Arrow says."""
    said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return InputError(2102, "Parquet file is damaged", where=name, expected=said, fix="write or copy the file again")


def _columns(name: str, schema: Any, fields: Fields) -> tuple[str, str | None]:
    found = {field.name: field.type for field in schema}
    text_types = (pa.types.is_string, pa.types.is_large_string)
    id_column = next((c for c in (fields.id, "id") if c in found), None)
    wrong = fields.text not in found or not any(is_type(found[fields.text]) for is_type in text_types)
    if id_column and not (pa.types.is_integer(found[id_column]) or any(t(found[id_column]) for t in text_types)):
        wrong = True
    if wrong:
        got = ", ".join(f"{n} {t}" for n, t in found.items())
        expected = f"expected {fields.text} string and perhaps {fields.id} string, got {got}"
        fix = "name the columns with --text-field and --id-field"
        raise InputError(2101, "Parquet file has other columns", where=name, expected=expected, fix=fix)
    return fields.text, id_column


def _rows(name: str, batch: Any, column: str, id_column: str | None, first: int) -> Iterator[Record]:
    texts = batch.column(column).cast(pa.large_binary()).to_pylist()
    ids = batch.column(id_column) if id_column else None
    if ids is not None and not pa.types.is_integer(ids.type):
        ids = ids.cast(pa.large_binary())
    names = ids.to_pylist() if ids is not None else [None] * len(texts)
    for offset, (text, identifier) in enumerate(zip(texts, names, strict=True)):
        yield _row(name, first + offset + 1, text, identifier, column)


def _row(name: str, number: int, text: bytes | None, identifier: bytes | int | None, column: str) -> Record:
    place = f"{name}:{number}"
    found: str | None = None
    try:
        value = decode(identifier, place) if isinstance(identifier, bytes) else identifier
        found = take_id({"id": value}, "id", place)
        where = f"{place} (id {found})" if found else place
        if text is None:
            raise RowError(2004, f"field {column!r} is not text", where=where, expected="expected text, got null")
        return Record(found or place, name, number, decode(text, where))
    except RowError as e:
        return Record(found or place, name, number, None, e, (text or b"")[:1000])
