"""Datasets that the Hugging Face library ``datasets`` has saved on disk: Arrow files. That library is not needed."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa

from ...core.errors import InputError
from .batches import BatchRows, table_faults
from .records import Fields
from .storage import exists, is_url, join, open_binary, reading

SPLITS: Final = "dataset_dict.json"
STATE: Final = "state.json"
_FILE_MAGIC: Final = b"ARROW1"
_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of a stream. Arrow takes a stream without them for a shorter one."""
_LIMIT: Final = 16 << 20


def dataset_files(folder: str) -> list[str] | None:
    """Arrow files of a saved dataset, or of all splits of one, in order; None where the folder is no dataset.

    Raises:
        InputError: 2101 its description is not one, or names files elsewhere; 2106 unreadable.
    """
    if exists(join(folder, SPLITS)):
        names = _described(join(folder, SPLITS), "splits")
        parts = [join(folder, name) for name in names]
        return [file for part in parts for file in _files_of(part)]
    return _files_of(folder) if exists(join(folder, STATE)) else None


def _files_of(folder: str) -> list[str]:
    return [join(folder, name) for name in _described(join(folder, STATE), "_data_files")]


def _described(name: str, key: str) -> list[str]:
    with reading(name):
        file = open_binary(name)
        try:
            data = file.read(_LIMIT)
        finally:
            file.close()
    try:
        found = json.loads(data)
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in found[key]]
        if found.get("_indices_data_files"):
            raise ValueError("a selection of rows, which is not read; save it with flatten_indices()")
        if any(not isinstance(n, str) or n in ("", ".", "..") or "/" in n or "\\" in n for n in names):
            raise ValueError("a name that leads elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        expected = f"expected {key} with names of files in this folder, got {type(e).__name__}: {e}"
        raise InputError(2101, "not a dataset that can be read", where=name, expected=expected) from e
    return names


class ArrowRows(BatchRows):
    """Rows of an Arrow file, streamed or with a footer; see ``BatchRows``. Local files are mapped: skipping is cheap.

    Raises:
        InputError: 2101 a column is missing or of a wrong type; 2102 damaged; 2106 unreadable.
    """

    def __init__(self, name: str, fields: Fields) -> None:
        super().__init__(name, fields)
        self._raw = open_binary(name)
        weakref.finalize(self, self._raw.close)
        with table_faults(name):
            try:
                self._has_footer = self._raw.read(len(_FILE_MAGIC)) == _FILE_MAGIC
                if not self._has_footer:
                    _require_end(self._raw)
                self._source = pa.PythonFile(self._raw, mode="r") if is_url(name) else pa.memory_map(name)
                self._choose(self._reader().schema)
            except BaseException:
                self._raw.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._batches = iter(())
        self._source.close()
        self._raw.close()

    def _batches_from(self, row: int) -> tuple[Iterator[Any], int]:
        return self._all(), 0

    def _is_near(self, row: int) -> bool:
        return True

    def _reader(self) -> Any:
        self._source.seek(0)
        return pa.ipc.open_file(self._source) if self._has_footer else pa.ipc.open_stream(self._source)

    def _all(self) -> Iterator[Any]:
        reader = self._reader()
        if self._has_footer:
            for number in range(reader.num_record_batches):
                yield from _pieces(reader.get_batch(number))
        else:
            for batch in reader:
                yield from _pieces(batch)


def _require_end(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_END)))
    if file.read(len(_END)) != _END:
        raise ValueError("expected the mark that ends an Arrow stream: the file is cut, or none")


def _pieces(batch: Any) -> Iterator[Any]:
    """Few rows at a time: a batch may hold a whole file."""
    for start in range(0, len(batch), 256):
        yield batch.slice(start, 256)
