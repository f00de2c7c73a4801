"""A job's rows as a dataset that ``datasets.load_from_disk`` opens; that library is not needed to write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from ...core import disk
from .source import Source
from .table import read_info

if TYPE_CHECKING:
    from .export_rows import Written

_COLUMNS: Final[dict[str, Any]] = {
    "custom_id": pa.string(),
    "row_index": pa.int64(),
    "status": pa.string(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "frames": pa.binary(),
    "n_latents": pa.int32(),
    "n_tokens": pa.int32(),
    "n_bytes_text": pa.int32(),
    "truncated": pa.bool_(),
}
_BATCH: Final = 256
_FILE_ROWS: Final = 65536


def write_dataset(source: Source, home: Path, written: Written, on_rows: Callable[[int], None]) -> None:
    """All rows, error rows included, as Arrow files with the descriptions that ``datasets`` wants."""
    from .export_rows import row_facts

    keep = read_info(source.tables[0]).keep if source.tables else ()
    schema = pa.schema([*_COLUMNS.items(), *((name, pa.string()) for name in keep)])
    rows = source.rows()
    names: list[str] = []
    batch: list[dict[str, Any]] = []
    more = True
    while more:
        name = f"data-{len(names):05d}.arrow"
        names.append(name)
        with disk.NewFile(home / name) as file, pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema) as stream:
            for _ in range(_FILE_ROWS // _BATCH):
                batch = [row_facts(row, bytes) for row in islice(rows, _BATCH)]
                stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                written.rows += len(batch)
                written.latents += sum(r["n_latents"] or 0 for r in batch)
                on_rows(len(batch))
                if more := len(batch) == _BATCH:
                    continue
                break
    _describe(home, names, schema)


def _describe(home: Path, names: list[str], schema: Any) -> None:
    kinds = {column.name: {"dtype": str(column.type), "_type": "Value"} for column in schema}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "latentwire",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "Frames of LatentWire", "features": kinds, "homepage": "", "license": ""}
    for name, facts in (("state.json", state), ("dataset_info.json", info)):
        disk.write_new(home / name, (json.dumps(facts, indent=2) + "\n").encode(), sync=False)
