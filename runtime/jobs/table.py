"""Parquet tables of frames: the declared schema, writing, verified reading.

A row holds the payload without its 24-byte header; what all rows share (format, encoder, d_z) stands once in the
file's metadata, so that every frame can be rebuilt exactly. Pages carry checksums, and reading verifies them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import FrameError, InputError, LatentWireError
from .. import codec as codecs
from .. import wire
from ..codec import Codec
from ..message import Message, chunk_marks
from ..wire import Frame
from .batches import FAULTS, damaged

FORMAT: Final = "latentwire-frames"
VERSION: Final = 1
KEY: Final = b"latentwire"
KEY_CRC: Final = b"latentwire_crc32c"
"""Pages have checksums of their own; what all rows share has this one."""
ROW_GROUP: Final = 256
_U32: Final = struct.Struct("<I")

_COLUMNS: Final[dict[str, Any]] = {
    "custom_id": pa.string(),
    "row_index": pa.int64(),
    "source_file": pa.string(),
    "source_row": pa.int64(),
    "status": pa.string(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "codec": pa.uint8(),
    "profile": pa.uint8(),
    "flags": pa.uint8(),
    "m": pa.int32(),
    "payload": pa.binary(),
    "payload_crc32c": pa.uint32(),
    "n_tokens": pa.int32(),
    "n_bytes_text": pa.int32(),
    "n_chunks": pa.int32(),
    "truncated": pa.bool_(),
}
_ALWAYS: Final = ("custom_id", "row_index", "source_file", "source_row", "status")
SCHEMA: Final = pa.schema([pa.field(n, t, nullable=n not in _ALWAYS) for n, t in _COLUMNS.items()])
"""Columns that the user keeps follow behind these, as strings."""


@dataclass(frozen=True)
class TableInfo:
    """What all rows of a table share.

    Attributes:
        encoder: hex SHA-256 of the encoder; its first four bytes are the frames' model id.
        d_z: dimensions of a latent.
        latents: M asked for.
        codec: name of the codec asked for; a row may differ.
        rows: rows of this table; 0 while that is not known.
        keep: columns of the input that stand beside the frames.

    Raises:
        InputError: 2111 a column to keep has the name of one of ours.
    """

    encoder: str
    d_z: int
    latents: int
    codec: str
    rows: int = 0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))  # JSON knows lists only
        if taken := [name for name in self.keep if name in _COLUMNS]:
            expected = f"expected other names than {', '.join(_COLUMNS)}, got {taken[0]!r}"
            raise InputError(
                2111, "a column of the output has this name", where="option keep_columns", expected=expected
            )

    @property
    def schema(self) -> Any:
        """Columns of the table, without what the rows share."""
        return pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in self.keep)])

    @property
    def model_id(self) -> bytes:
        """Four bytes."""
        return bytes.fromhex(self.encoder)[:4]


@dataclass(frozen=True)
class StoredRow:
    """One row of a table, as it was read.

    Attributes:
        message: the frames; None for an error row.
        error_code: ``LW-2006``; empty for a sound row.
        columns: the kept columns of the input.
    """

    custom_id: str
    row_index: int
    message: Message | None
    error_code: str = ""
    error_message: str = ""
    n_tokens: int | None = None
    n_bytes_text: int | None = None
    truncated: bool = False
    columns: Mapping[str, str | None] = field(default_factory=dict)


def payload_of(message: Message) -> bytes:
    """The column ``payload``: one payload, or length and payload of every chunk."""
    payloads = [f.payload for f in message.frames]
    if len(payloads) == 1:
        return payloads[0]
    return b"".join(_U32.pack(len(p)) + p for p in payloads)


def write_table(file: Path | BinaryIO, rows: Sequence[dict[str, Any]], info: TableInfo) -> None:
    """Write rows (column name to value) as one Parquet file; not atomic, see ``commit``."""
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "frame_version": wire.MAJOR << 4,
        **asdict(replace(info, rows=len(rows))),
    }
    shared = json.dumps(facts, sort_keys=True).encode()
    schema = info.schema.with_metadata({KEY: shared, KEY_CRC: b"%08x" % wire.payload_checksum(shared)})
    table = pa.table([pa.array([r[column.name] for r in rows], column.type) for column in schema], schema=schema)
    _write(table, file)


def change_rows(path: Path, file: Path | BinaryIO, first: int) -> None:
    """Copy a table with its rows numbered from ``first`` on.

    Raises:
        InputError: 2102 it is damaged.
    """
    with _opened(path) as source:
        try:
            table = source.read()
        except (*FAULTS, OSError) as e:
            raise damaged(str(path), e) from e
    column = table.schema.get_field_index("row_index")
    numbers = pa.array(range(first, first + len(table)), pa.int64())
    _write(table.set_column(column, table.schema.field(column), numbers), file)


def _write(table: Any, file: Path | BinaryIO) -> None:
    pq.write_table(
        table,
        file,
        row_group_size=ROW_GROUP,
        compression="none",
        use_dictionary=["source_file", "status", "error_code"],
        write_statistics=["row_index", "source_row"],
        write_page_checksum=True,
    )


def read_info(path: Path) -> TableInfo:
    """What the rows share, and how many there are.

    Raises:
        InputError: 2101 not a table of frames; 2102 damaged.
    """
    with _opened(path) as file:
        return _info(path, file)


def read_table(path: Path, data: bytes | None = None) -> Iterator[StoredRow]:
    """Rows in order, each checked as a frame.

    Args:
        path: the table.
        data: its bytes, where they were read already.

    Raises:
        InputError: 2101, 2102.
        FrameError: 1104-1109 a payload that no writer made; the place names file and row.
    """
    with _opened(path, data) as file:
        info = _info(path, file)
        seen = 0
        try:
            for batch in file.iter_batches(batch_size=ROW_GROUP):
                for row in batch.to_pylist():
                    seen += 1
                    yield _row(path, row, info)
        except (*FAULTS, OSError) as e:
            raise damaged(str(path), e) from e
        # A damaged page header can end a column early without any complaint from the library.
        if seen != info.rows:
            raise damaged(str(path), ValueError(f"expected {info.rows} rows, got {seen}"))


def read_row(path: Path, number: int) -> StoredRow:
    """Row ``number`` (from 0) of a table; only the row group that holds it is read. Raises as ``read_table``."""
    with _opened(path) as file:
        info = _info(path, file)
        try:
            group, at = divmod(number, ROW_GROUP)
            (row,) = file.read_row_group(group).slice(at, 1).to_pylist()
        except (*FAULTS, OSError) as e:
            raise damaged(str(path), e) from e
    return _row(path, row, info)


def _opened(path: Path, data: bytes | None = None) -> Any:
    source = path if data is None else pa.BufferReader(data)
    try:
        return pq.ParquetFile(source, page_checksum_verification=True)
    except (*FAULTS, OSError) as e:
        raise damaged(str(path), e) from e


def _info(path: Path, file: Any) -> TableInfo:
    schema = file.schema_arrow
    facts = (schema.metadata or {}).get(KEY)
    if facts is None or not pa.schema(list(schema)[: len(SCHEMA)]).equals(SCHEMA):
        expected = f"expected {', '.join(_COLUMNS)}, got {', '.join(schema.names)}"
        fix = "give a file or folder that latentwire compress wrote"
        raise InputError(2101, "not a table of frames", where=str(path), expected=expected, fix=fix)
    if schema.metadata.get(KEY_CRC) != b"%08x" % wire.payload_checksum(facts):
        raise damaged(str(path), ValueError("checksum of the table's metadata does not match"))
    try:
        found = json.loads(facts)
        if found["format"] != FORMAT or found["version"] != VERSION or found["frame_version"] >> 4 != wire.MAJOR:
            raise ValueError(f"format {found['format']} {found['version']}, frames {found['frame_version']}")
        names = ("encoder", "d_z", "latents", "codec", "rows")
        info = TableInfo(**{name: found[name] for name in names}, keep=found.get("keep", ()))
        if not schema.remove_metadata().equals(info.schema):
            raise ValueError(f"columns {', '.join(schema.names)}")
        bytes.fromhex(info.encoder)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(2101, "metadata of the table cannot be read", where=str(path), expected=str(e)) from e
    return info


def _row(path: Path, row: dict[str, Any], info: TableInfo) -> StoredRow:
    common = (row["custom_id"], row["row_index"])
    kept = {name: row[name] for name in info.keep}
    if row["status"] == "error":
        return StoredRow(*common, None, row["error_code"] or "", row["error_message"] or "", columns=kept)
    try:
        message = _message(row, info)
    except LatentWireError as e:
        where = f"{path}, row {row['row_index']} (id {row['custom_id']})"
        raise type(e)(e.code, e.what, where=f"{where}, {e.where}".rstrip(", "), expected=e.expected, fix=e.fix) from e
    return StoredRow(*common, message, "", "", row["n_tokens"], row["n_bytes_text"], bool(row["truncated"]), kept)


def _message(row: dict[str, Any], info: TableInfo) -> Message:
    payload, count = row["payload"], row["n_chunks"]
    if payload is None or not count or row["status"] != "ok":
        raise FrameError(1108, "a row without payload that is no error row")
    if wire.payload_checksum(payload) != row["payload_crc32c"]:
        raise FrameError(1104, "checksum of the payload does not match")
    parts = [payload] if count == 1 else _split(payload, count)
    codec = codecs.check_known(row["codec"], row["profile"])
    text = codec == Codec.TEXT
    frames = []
    for part, marks in zip(parts, chunk_marks(count), strict=True):
        m = 0 if text else wire.latents_in(codec, row["profile"], info.d_z, part)
        ids = (0, wire.NO_MODEL) if text else (info.d_z, info.model_id)
        frame = Frame(codec, part, m, *ids, row["profile"], row["flags"], marks)
        wire.validate(frame)
        frames.append(frame)
    if sum(f.m for f in frames) != row["m"]:
        raise FrameError(1105, "payload length does not fit M", expected=f"expected {row['m']} latents")
    return Message(tuple(frames))


def _split(payload: bytes, count: int) -> list[bytes]:
    parts: list[bytes] = []
    at = 0
    while at + 4 <= len(payload) and len(parts) < count:
        end = at + 4 + _U32.unpack_from(payload, at)[0]
        parts.append(payload[at + 4 : end])
        at = end
    if at != len(payload) or len(parts) != count:
        raise FrameError(1105, "chunks do not fill the payload", expected=f"expected {count} chunks")
    return parts
