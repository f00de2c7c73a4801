"""Where frames come from: a job's folder, one table, or a file of frames end to end.

In: a path. Out: rows with their messages, in order. Knows nothing of questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...core.errors import FrameError, InputError
from ...core.files import sha256_file
from .. import tlv, wire
from ..message import Message
from .commit import JOB, MANIFEST, JobFolder
from .storage import unreadable
from .table import FORMAT, StoredRow, read_info, read_table

PARQUET_MAGIC: Final = b"PAR1"


@dataclass(frozen=True)
class Source:
    """Rows of frames. ``count`` is None where it is known only at the end."""

    path: Path
    tables: tuple[Path, ...]
    count: int | None

    def rows(self) -> Iterator[StoredRow]:
        """Every row, error rows included.

        Raises:
            InputError: 2101, 2102, 2106.
            FrameError: 1101-1109.
        """
        if not self.tables:
            yield from read_frame_file(self.path)
        for table in self.tables:
            yield from read_table(table)


def open_source(path: Path) -> Source:
    """Find out what ``path`` is and verify what can be verified before reading rows.

    Raises:
        InputError: 2101 not frames; 2102 a table differs from the job's manifest; 2106 missing or unreadable;
            2108 job not finished.
        FrameError: 1101 a file that is neither a table nor frames.
    """
    if path.is_dir():
        return _open_folder(path)
    if magic(path)[:4] == PARQUET_MAGIC:
        return Source(path, (path,), read_info(path).rows)
    return Source(path, (), None)


def magic(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        InputError: 2106.
    """
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as e:
        raise unreadable(str(path), e) from e


def is_job_folder(path: Path) -> bool:
    """Holds a job of frames, finished or not."""
    return (path / JOB).is_file() or ((path / MANIFEST).is_file() and (path / "data").is_dir())


def read_frame_file(path: Path) -> Iterator[StoredRow]:
    """Frames end to end; the frames of a chunked text become one row.

    A row is named by the custom id in its frame, else by its number from 1.
    """
    try:
        with path.open("rb") as stream:
            pending: list[wire.Frame] = []
            number = 0
            for frame in wire.read_frames(stream):
                pending.append(frame)
                if frame.chunk[0] + 1 == frame.chunk[1]:
                    yield StoredRow(_id_of(pending[0], number + 1), number, Message(tuple(pending)))
                    number, pending = number + 1, []
            if pending or not number:
                what = "frames end in the middle of a text" if pending else "file holds no frame"
                raise FrameError(1102, what, where=str(path))
    except OSError as e:
        raise unreadable(str(path), e) from e


def _open_folder(path: Path) -> Source:
    folder = JobFolder(path)
    manifest = folder.read_manifest()
    if manifest.get("format") != FORMAT:
        expected = f"expected format {FORMAT}, got {manifest.get('format')}"
        raise InputError(2101, "not a folder of frames", where=str(path), expected=expected)
    tables: list[Path] = []
    count = 0
    for commit in manifest["shards"]:
        table = folder.part(int(commit["shard"]))
        found = (table.stat().st_size, sha256_file(table)) if table.is_file() else None
        if found != (commit["bytes"], commit["sha256"]):
            what = "table differs from the job's manifest" if found else "table of the job is missing"
            expected = f"expected {commit['bytes']} bytes with SHA-256 {commit['sha256']}"
            got = f", got {found[0]} bytes with {found[1]}" if found else ""
            fix = "copy the folder again or compress again"
            raise InputError(2102, what, where=str(table), expected=expected + got, fix=fix)
        tables.append(table)
        count += read_info(table).rows
    return Source(path, tuple(tables), count)


def _id_of(frame: wire.Frame, number: int) -> str:
    for item in frame.extensions:
        if item.type == tlv.CUSTOM_ID:
            return item.value.decode()
    return str(number)
