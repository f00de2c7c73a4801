"""Input files to rows, in order, with every unusable row in its place.

JSONL (plain, .gz, .zst), Parquet, plain text (one document a file), or a folder of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ...core.errors import InputError, RowError
from ..options import MAX_TEXT_BYTES
from .parse import decode, parse_object, take_id, take_text
from .records import ROW_LIMIT, Fields, Record
from .streams import Line, lines, open_bytes, unreadable

KINDS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".ndjson.gz": "jsonl",
    ".ndjson.zst": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


def expand(paths: Sequence[str]) -> list[str]:
    """Files in the order given; a folder stands for its readable files by name.

    Raises:
        InputError: 2104 nothing to read; 2106 no such file; 2110 a kind of file that is not read.
    """
    found: list[str] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found += [str(p) for p in sorted(path.iterdir()) if p.is_file() and _kind(p)]
        elif not path.exists():
            raise InputError(2106, "no such file", where=name, fix="check the path")
        elif not _kind(path):
            expected = f"expected one of {', '.join(KINDS)}"
            raise InputError(2110, "not a kind of file that is read here", where=name, expected=expected)
        else:
            found.append(name)
    if not found:
        expected = f"expected at least one file of {', '.join(KINDS)}"
        raise InputError(2104, "no input", where=", ".join(paths), expected=expected)
    return found


def read_rows(name: str, fields: Fields, start: int = 0, count: int | None = None) -> Iterator[Record]:
    """Rows ``start`` to ``start + count`` (from 0, blank lines not counted) of one file.

    Raises:
        InputError: 2101, 2102 (Parquet), 2103 (compressed), 2106 unreadable.
    """
    stop = None if count is None else start + count
    read: dict[str, Callable[..., Iterator[Record]]] = {"jsonl": _jsonl, "parquet": _parquet, "text": _text}
    return read[_kind(Path(name))](name, fields, start, stop)


def _kind(path: Path) -> str:
    name = path.name.lower()
    return next((kind for suffix, kind in KINDS.items() if name.endswith(suffix)), "")


def _jsonl(name: str, fields: Fields, start: int, stop: int | None) -> Iterator[Record]:
    with open_bytes(Path(name), name) as stream:
        for index, line in enumerate(lines(stream, ROW_LIMIT)):
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield _row(name, fields, line)


def _row(name: str, fields: Fields, line: Line) -> Record:
    place = f"{name}:{line.number}"
    identifier: str | None = None
    try:
        if line.size > ROW_LIMIT:
            raise too_large(line.size, ROW_LIMIT, place)
        row = parse_object(line.data, place, ended=line.ended)
        identifier = take_id(row, fields.id, place)
        where = f"{place} (id {identifier})" if identifier else place
        return Record(identifier or place, name, line.number, take_text(row, fields.text, where))
    except RowError as e:
        return Record(identifier or place, name, line.number, None, e, line.data[:1000])


def _parquet(name: str, fields: Fields, start: int, stop: int | None) -> Iterator[Record]:
    from .parquet_input import read_parquet

    yield from read_parquet(name, fields, start, stop)


def _text(name: str, fields: Fields, start: int, stop: int | None) -> Iterator[Record]:
    if start > 0 or stop == 0:
        return
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 4)
        size = Path(name).stat().st_size
    except OSError as e:
        raise unreadable(name, e) from e
    try:
        if size > MAX_TEXT_BYTES + 3:
            raise too_large(size, MAX_TEXT_BYTES, name)
        yield Record(name, name, 1, decode(data, name))
    except RowError as e:
        yield Record(name, name, 1, None, e, data[:1000])


def too_large(size: int, limit: int, where: str) -> RowError:
    """2007."""
    expected = f"expected at most {limit} bytes, got {size}"
    return RowError(2007, "text too large", where=where, expected=expected, fix="split it")
