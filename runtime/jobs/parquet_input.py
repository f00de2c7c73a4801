"""Rows of a Parquet file. Reading begins at any row group; page checksums are verified where the file has them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import InputError
from .batches import BatchRows, table_faults
from .records import Fields
from .storage import is_url, open_binary
from .streams import BOMB_FLOOR, BOMB_RATIO

BATCH_ROWS: Final = 256
BATCH_BYTES: Final = 256 << 20
"""Bytes of decoded values in one batch, at most."""
_SAID_ONCE: Final = {"PLAIN", "RLE", "BIT_PACKED"}
"""Encodings that cannot make one value stand for many."""


class ParquetRows(BatchRows):
    """See ``BatchRows``.

    Raises:
        InputError: 2101 a column is missing or of a wrong type; 2102 damaged, or a row group that grows beyond reason
            when it is unpacked; 2106 unreadable. Also while rows are read.
    """

    def __init__(self, name: str, fields: Fields) -> None:
        super().__init__(name, fields)
        self._raw = open_binary(name)
        weakref.finalize(self, self._raw.close)
        with table_faults(name):
            try:
                source = pa.PythonFile(self._raw, mode="r") if is_url(name) else name
                self._file = pq.ParquetFile(source, page_checksum_verification=True)
                self._choose(self._file.schema_arrow)
            except BaseException:
                self._raw.close()
                raise
            metadata = self._file.metadata
            self._starts = [0]
            for group in range(metadata.num_row_groups):
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()

    def _batches_from(self, row: int) -> tuple[Iterator[Any], int]:
        group = self._group_of(row)
        return self._groups(group), self._starts[group]

    def _groups(self, first: int) -> Iterator[Any]:
        for group in range(first, len(self._starts) - 1):
            rows = self._batch_rows(group)
            yield from self._file.iter_batches(batch_size=rows, row_groups=[group], columns=self._columns)

    def _group_of(self, row: int) -> int:
        return next((g for g in range(len(self._starts) - 1) if row < self._starts[g + 1]), len(self._starts) - 1)

    def _is_near(self, row: int) -> bool:
        return self._group_of(row) == self._group_of(self._row)

    def _batch_rows(self, group: int) -> int:
        """Rows to decode at once, so that a dictionary whose entries stand for many rows cannot fill the memory."""
        found = self._file.metadata.row_group(group)
        largest = 0
        for number in range(found.num_columns):
            column = found.column(number)
            if column.path_in_schema.partition(".")[0] not in self._columns:
                continue
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            if size > BOMB_FLOOR and size > BOMB_RATIO * max(1, packed):
                what = "table grows beyond reason when it is unpacked"
                expected = f"expected at most {BOMB_RATIO} times its {packed} bytes, got {size}"
                raise InputError(2102, what, where=self.name, expected=expected)
            if not set(column.encodings) <= _SAID_ONCE:
                largest = max(largest, size)
        return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
