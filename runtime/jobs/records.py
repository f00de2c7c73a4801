"""One input row, sound or not, how rows are read, and how they are named in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from ...core.errors import InputError, LatentWireError

ROW_LIMIT: Final = 48 << 20
"""Bytes of one JSON line; a text of 16 MiB may be longer when it is escaped."""

DuplicateId = Literal["error", "first", "suffix"]
BadFile = Literal["stop", "skip"]


@dataclass(frozen=True)
class Fields:
    """Which columns are read, and what becomes of what stands twice or cannot be read.

    Attributes:
        id: column of the row's id. ``id`` is read where ``custom_id`` is missing.
        text: column of the text.
        keep: columns that go into the output beside the frame, as text.
        on_duplicate_id: ``error`` stops the job before work begins; ``first`` compresses the first row with an id,
            the others get error 2008; ``suffix`` names the others ``ID#2``, ``ID#3`` and so on.
        dedupe: equal texts of a shard are compressed once.
        on_bad_file: ``stop`` the job at a damaged file, or ``skip`` the whole file.

    Raises:
        InputError: 2111 an unknown choice, or a column to keep that is named twice.
    """

    id: str = "custom_id"
    text: str = "text"
    keep: tuple[str, ...] = ()
    on_duplicate_id: DuplicateId = "error"
    dedupe: bool = False
    on_bad_file: BadFile = "stop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))  # JSON knows lists only
        for name, known in (("on_duplicate_id", get_args(DuplicateId)), ("on_bad_file", get_args(BadFile))):
            if getattr(self, name) not in known:
                expected = f"expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                raise InputError(2111, "unknown option value", where=f"option {name}", expected=expected)
        if len(set(self.keep)) != len(self.keep) or "" in self.keep:
            expected = f"expected different names, got {', '.join(map(repr, self.keep))}"
            raise InputError(
                2111, "columns to keep cannot be told apart", where="option keep_columns", expected=expected
            )


def split_names(words: Sequence[str]) -> tuple[str, ...]:
    """``["a,b", "c"]``, as it comes from a command line, to names."""
    return tuple(name.strip() for word in words for name in word.split(","))


@dataclass(frozen=True)
class Record:
    """One row of an input file.

    Attributes:
        custom_id: the row's id, or ``file:row`` where it has none.
        source_file: as the user named it.
        source_row: line (JSONL) or row (Parquet, Arrow), from 1.
        text: None only where ``error`` says why.
        error: what is wrong with the row; it is not compressed then.
        raw: the unreadable line, for the errors file.
        columns: the kept columns as text; None where the row has no such value.
    """

    custom_id: str
    source_file: str
    source_row: int
    text: str | None
    error: LatentWireError | None = None
    raw: bytes = b""
    columns: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """``docs.jsonl:12 (id a7)``."""
        place = f"{self.source_file}:{self.source_row}"
        return place if self.custom_id == place else f"{place} (id {self.custom_id})"
