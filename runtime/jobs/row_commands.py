"""What ``latentwire jobs index | export | merge`` do once their options are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.console import print_json, print_table, track
from ...core.errors import EXIT_OK, EXIT_ROW_ERRORS, InputError
from .export_forms import ExportForm
from .export_rows import export_rows
from .index import JobIndex
from .merge import merge_jobs
from .table import StoredRow


def index(folder: Path, ids: Sequence[str], as_json: bool) -> int:
    """Make or use the index, and show rows."""
    found = _index(folder)
    rows = [(identifier, found.find(identifier)) for identifier in ids]
    facts = [_row(identifier, row) for identifier, row in rows]
    if as_json:
        print_json({"index": str(found.path), "rows": len(found), "found": facts})
    elif ids:
        print_table(["id", "row", "status", "latents", "bytes"], [list(f.values()) for f in facts])
    else:
        print_table(["what", "value"], [("index", str(found.path)), ("rows", len(found))])
    return EXIT_ROW_ERRORS if any(row is None for _, row in rows) else EXIT_OK


def export(folder: Path, form: ExportForm, out: Path, as_json: bool) -> int:
    """Write rows in another form."""
    with track("export", unit="rows") as bar:
        written = export_rows(folder, form, out, bar.advance)
    _show({"out": str(out), "rows": written.rows, "left_out": written.left_out, "latents": written.latents}, as_json)
    return EXIT_OK


def merge(folders: Sequence[Path], out: Path, as_json: bool) -> int:
    """Make one job of several."""
    with track("merge", unit="rows") as bar:
        manifest = merge_jobs(folders, out, bar.advance)
    totals = manifest["totals"]
    facts = {"out": str(out), "shards": manifest["shard_count"], "rows": totals["rows"], "errors": totals["errors"]}
    _show(facts, as_json)
    return EXIT_ROW_ERRORS if totals["errors"] else EXIT_OK


def _index(folder: Path) -> JobIndex:
    try:
        return JobIndex(folder)
    except InputError as e:
        if e.code not in (2106, 2108):
            raise
        with track("index", unit="rows") as bar:
            return JobIndex.build(folder, bar.advance)


def _row(identifier: str, row: StoredRow | None) -> dict[str, Any]:
    if row is None:
        return {"custom_id": identifier, "row_index": None, "status": "missing", "n_latents": None, "wire_bytes": None}
    message = row.message
    return {
        "custom_id": identifier,
        "row_index": row.row_index,
        "status": "ok" if message else row.error_code,
        "n_latents": message.latents if message else None,
        "wire_bytes": len(message.pack()) if message else None,
    }


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_table(["what", "value"], list(facts.items()))
