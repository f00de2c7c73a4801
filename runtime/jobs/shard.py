"""Rows of one shard: what is compressed, what the table says about it, what is counted. Knows nothing of folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import EXIT_IO, EnvironmentFault, LatentWireError
from .. import wire
from ..codec import Codec
from ..compress import Compressed
from ..options import CompressOptions
from .plan import Plan, Shard
from .records import Record
from .spread import Spread
from .table import payload_of, read_table
from .totals import SPREAD, SPREADS


class Encoder(Protocol):
    """The one method of a Pipeline that shards need."""

    def compress_rows(
        self, texts: Sequence[str], options: CompressOptions, names: Sequence[str]
    ) -> list[Compressed | LatentWireError]:
        """One result or error a text, in order."""

    def describe(self) -> dict[str, str]:
        """What computes, by name, for the commit record."""


def compress_rows(
    records: Sequence[Record],
    encoder: Encoder,
    options: CompressOptions,
    group: int,
    *,
    poison: Collection[int] = (),
    first: int = 0,
    dedupe: bool = False,
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Records to rows of the table, each with its copy for the errors file where it has an error.

    Args:
        records: rows of the shard.
        encoder: open.
        options: how.
        group: records compressed together.
        poison: positions in ``records`` that get error 5003 unseen.
        first: number of the first record in the job.
        dedupe: compress a text that stood before in ``records`` only once.
    """
    seen: dict[str, Compressed] | None = {} if dedupe else None
    for at in range(0, len(records), group):
        some = [_poisoned(r) if at + i in poison else r for i, r in enumerate(records[at : at + group])]
        for i, (record, result) in enumerate(zip(some, _compress(some, encoder, options, seen), strict=True)):
            error = _error_row(record, result) if isinstance(result, LatentWireError) else None
            yield _table_row(record, result, first + at + i), error


def _poisoned(record: Record) -> Record:
    what = "the process died each time it met this row"
    error = EnvironmentFault(5003, what, where=record.where, fix="look at the row; split it, or leave it out")
    return replace(record, text=None, error=error)


def _compress(
    records: Sequence[Record], encoder: Encoder, options: CompressOptions, seen: dict[str, Compressed] | None
) -> list[Compressed | LatentWireError]:
    sound = [r for r in records if r.error is None]
    if seen is not None:
        first = {r.text: r for r in reversed(sound)}
        sound = [r for r in sound if (r.text or "") not in seen and first[r.text] is r]
    made = encoder.compress_rows([r.text or "" for r in sound], options, [r.where for r in sound])
    if seen is None:
        found = iter(made)
        return [next(found) if r.error is None else r.error for r in records]
    new = {r.text or "": result for r, result in zip(sound, made, strict=True)}
    seen.update((text, result) for text, result in new.items() if isinstance(result, Compressed))
    return [r.error or seen.get(r.text or "") or _again(r, new[r.text or ""]) for r in records]


def _again(record: Record, error: Compressed | LatentWireError) -> Compressed | LatentWireError:
    """The error of a text that stands twice names the row it is about."""
    if isinstance(error, LatentWireError):
        return type(error)(error.code, error.what, where=record.where, expected=error.expected, fix=error.fix)
    return error


def _table_row(record: Record, result: Compressed | LatentWireError, index: int) -> dict[str, Any]:
    place = {
        "custom_id": record.custom_id,
        "row_index": index,
        "source_file": record.source_file,
        "source_row": record.source_row,
    }
    if isinstance(result, LatentWireError):
        empty = ("codec", "profile", "flags", "m", "payload", "payload_crc32c", "n_tokens", "n_bytes_text", "n_chunks")
        nothing = dict.fromkeys((*empty, "truncated")) | dict(record.columns)
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
        **record.columns,
    }


def printable(error: LatentWireError) -> str:
    """The message; whatever a file name or id brought along, it can be stored as UTF-8."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _error_row(record: Record, error: LatentWireError) -> dict[str, Any]:
    text = {"text": record.text} if record.text is not None else {}
    raw = {"raw": record.raw.decode("utf-8", "backslashreplace")} if record.raw else {}
    kept = {k: v for k, v in record.columns.items() if v is not None}
    return (
        kept
        | {"custom_id": record.custom_id, "error_code": error.label, "error_message": printable(error)}
        | text
        | raw
    )


def verify_table(data: bytes, rows: int, path: Path) -> None:
    """Check the bytes of a table that was just written: footer, every checksum, every row.

    Raises:
        EnvironmentFault: 5007 they are not what was written.
    """
    try:
        found = sum(1 for _ in read_table(path, data))
        said = f"expected {rows} rows, got {found}"
    except LatentWireError as e:
        found, said = -1, str(e)
    if found != rows:
        what = "a table reads back otherwise than it was written"
        fix = "look at the system's log; choose another disk"
        raise EnvironmentFault(5007, what, where=str(path), expected=said, fix=fix, exit_code=EXIT_IO)


def describe_input(plan: Plan, shard: Shard) -> dict[str, Any]:
    """Which rows of which file."""
    file = plan.files[shard.file]
    return {"file": file.name, "input_sha256": file.sha256, "start": shard.start, "rows": shard.rows}


def count_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums and spreads over the rows of a table."""
    sound = [r for r in rows if r["status"] == "ok"]
    wire_bytes = [_wire_bytes(r) for r in sound]
    ratios = [100 * r["n_bytes_text"] // sent for r, sent in zip(sound, wire_bytes, strict=True)]
    values = ([r["n_tokens"] for r in sound], [r["m"] for r in sound], wire_bytes, ratios)
    return {
        "errors": len(rows) - len(sound),
        "errors_by_code": dict(sorted(Counter(r["error_code"] for r in rows if r["error_code"]).items())),
        "text_bytes": sum(r["n_bytes_text"] for r in sound),
        "payload_bytes": sum(len(r["payload"]) for r in sound),
        "wire_bytes": sum(wire_bytes),
        "tokens": sum(r["n_tokens"] for r in sound),
        "text_tokens": sum(r["n_tokens"] for r in sound if r["codec"] == Codec.TEXT),
        "latents": sum(r["m"] for r in sound),
        "chunks": sum(r["n_chunks"] for r in sound),
        "truncated": sum(r["truncated"] for r in sound),
        "fallback": sum(bool(r["flags"] & wire.FALLBACK) for r in sound),
        SPREAD: {name: Spread.of(found).to_json() for name, found in zip(SPREADS, values, strict=True)},
    }


def _wire_bytes(row: dict[str, Any]) -> int:
    """Bytes of the row's frames: 24 each, and for chunks 8 of extension instead of 4 of length."""
    extra = 24 if row["n_chunks"] == 1 else row["n_chunks"] * (24 + 8 - 4)
    return len(row["payload"]) + extra
