"""One input row, sound or not, and how rows are named in messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...core.errors import LatentWireError

ROW_LIMIT: Final = 48 << 20
"""Bytes of one JSON line; a text of 16 MiB may be longer when it is escaped."""


@dataclass(frozen=True)
class Fields:
    """Names of the columns to read. ``id`` is read where ``custom_id`` is missing."""

    id: str = "custom_id"
    text: str = "text"


@dataclass(frozen=True)
class Record:
    """One row of an input file.

    Attributes:
        custom_id: the row's id, or ``file:row`` where it has none.
        source_file: as the user named it.
        source_row: line (JSONL) or row (Parquet), from 1.
        text: None where ``error`` says why.
        error: what is wrong with the row.
        raw: the unreadable line, for the errors file.
    """

    custom_id: str
    source_file: str
    source_row: int
    text: str | None
    error: LatentWireError | None = None
    raw: bytes = b""

    @property
    def where(self) -> str:
        """``docs.jsonl:12 (id a7)``."""
        place = f"{self.source_file}:{self.source_row}"
        return place if self.custom_id == place else f"{place} (id {self.custom_id})"
