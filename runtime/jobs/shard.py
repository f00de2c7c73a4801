"""One shard: read its rows, compress them, build the table's rows. Depends on nothing but the shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...core.errors import InputError, LatentWireError, RowError
from .. import wire
from ..compress import Compressed
from ..options import CompressOptions
from ..pipeline import Pipeline
from .commit import JobFolder
from .plan import Plan, Shard
from .records import Record
from .table import TableInfo, payload_of, read_table, write_table

GROUP: Final = 128
"""Rows compressed together; sorted by length among themselves."""


@dataclass(frozen=True)
class Job:
    """All that ``run_shard`` needs."""

    folder: JobFolder
    plan: Plan
    options: CompressOptions
    info: TableInfo


def run_shard(job: Job, shard: Shard, pipe: Pipeline, done: Callable[[int], None]) -> dict[str, Any]:
    """Do one shard and commit it. Returns the facts of its commit.

    Args:
        job: where and how.
        shard: which rows.
        pipe: an open pipeline with its encoder.
        done: hears how many rows are finished.

    Raises:
        InputError: 2105 and what reading raises.
        EnvironmentFault: 5004, 5005.
    """
    records = job.plan.read(shard)
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for at in range(0, len(records), GROUP):
        group = records[at : at + GROUP]
        for record, result in zip(group, _compress(group, pipe, job.options), strict=True):
            rows.append(_table_row(record, result, shard.first + len(rows)))
            if isinstance(result, LatentWireError):
                failed.append(_error_row(record, result))
        done(len(group))
    size, digest = job.folder.put(
        shard.number, lambda path: write_table(path, rows, job.info), lambda path: _verify(path, len(rows))
    )
    job.folder.put_errors(shard.number, failed)
    facts = {"shard": shard.number, "bytes": size, "sha256": digest, **_input(job.plan, shard), **_count(rows)}
    job.folder.commit(shard.number, facts)
    return facts


def _compress(
    records: Sequence[Record], pipe: Pipeline, options: CompressOptions
) -> list[Compressed | LatentWireError]:
    sound = [r for r in records if r.text is not None]
    made = iter(pipe.compress_rows([r.text or "" for r in sound], options, [r.where for r in sound]))
    missing = RowError(2004, "text is missing")
    return [next(made) if r.text is not None else r.error or missing for r in records]


def _table_row(record: Record, result: Compressed | LatentWireError, index: int) -> dict[str, Any]:
    place = {
        "custom_id": record.custom_id,
        "row_index": index,
        "source_file": record.source_file,
        "source_row": record.source_row,
    }
    if isinstance(result, LatentWireError):
        empty = ("codec", "profile", "flags", "m", "payload", "payload_crc32c", "n_tokens", "n_bytes_text", "n_chunks")
        nothing = dict.fromkeys((*empty, "truncated"))
        return {**place, "status": "error", "error_code": result.label, "error_message": printable(result), **nothing}
    frame, payload = result.message.frames[0], payload_of(result.message)
    return {
        **place,
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "codec": frame.codec,
        "profile": frame.profile,
        "flags": frame.flags,
        "m": result.message.latents,
        "payload": payload,
        "payload_crc32c": wire.payload_checksum(payload),
        "n_tokens": result.tokens,
        "n_bytes_text": result.text_bytes,
        "n_chunks": len(result.message.frames),
        "truncated": result.truncated,
    }


def printable(error: LatentWireError) -> str:
    """The message; whatever a file name or id brought along, it can be stored as UTF-8."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _error_row(record: Record, error: LatentWireError) -> dict[str, Any]:
    text = {"text": record.text} if record.text is not None else {}
    raw = {"raw": record.raw.decode("utf-8", "backslashreplace")} if record.raw else {}
    return {"custom_id": record.custom_id, "error_code": error.label, "error_message": printable(error)} | text | raw


def _verify(path: Path, rows: int) -> None:
    found = sum(1 for _ in read_table(path))
    if found != rows:
        raise InputError(2102, "table was not written whole", where=str(path), expected=f"expected {rows}, got {found}")


def _input(plan: Plan, shard: Shard) -> dict[str, Any]:
    file = plan.files[shard.file]
    return {"file": file.name, "input_sha256": file.sha256, "start": shard.start, "rows": shard.rows}


def _count(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sound = [r for r in rows if r["status"] == "ok"]
    return {
        "errors": len(rows) - len(sound),
        "errors_by_code": dict(sorted(Counter(r["error_code"] for r in rows if r["error_code"]).items())),
        "text_bytes": sum(r["n_bytes_text"] for r in sound),
        "payload_bytes": sum(len(r["payload"]) for r in sound),
        "wire_bytes": sum(_wire_bytes(r) for r in sound),
        "tokens": sum(r["n_tokens"] for r in sound),
        "latents": sum(r["m"] for r in sound),
        "chunks": sum(r["n_chunks"] for r in sound),
        "truncated": sum(r["truncated"] for r in sound),
    }


def _wire_bytes(row: dict[str, Any]) -> int:
    """Bytes of the row's frames: 24 each, and for chunks 8 of extension instead of 4 of length."""
    extra = 24 if row["n_chunks"] == 1 else row["n_chunks"] * (24 + 8 - 4)
    return len(row["payload"]) + extra


def canonical(facts: object) -> bytes:
    """JSON bytes that do not depend on the order of keys, for fingerprints."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
