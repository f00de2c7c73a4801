"""Questions from a file: ``{"custom_id": "a7", "question": "..."}`` a line.

``custom_id`` (or ``id``) names the row that the question is about; without one it is asked about every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import InputError, LatentWireError, RowError
from .parse import parse_object, take_id, take_text
from .records import ROW_LIMIT
from .streams import LineReader


@dataclass(frozen=True)
class Question:
    """One question, or why its line cannot be used.

    Attributes:
        row: id of the row it is about; None: every row.
        text: the question.
        where: ``q.jsonl:3``.
    """

    row: str | None
    text: str
    where: str
    error: LatentWireError | None = None


def read_questions(name: str) -> list[Question]:
    """All questions of a JSONL file (plain, .gz, .zst).

    Raises:
        InputError: 2103, 2106; 2104 no line in it.
    """
    with LineReader(name, ROW_LIMIT) as lines:
        found = list(_questions(name, lines))
    if not found:
        raise InputError(2104, "no input", where=name, expected="expected at least one question")
    return found


def _questions(name: str, lines: LineReader) -> Iterator[Question]:
    for line in lines:
        where = f"{name}:{line.number}"
        row: str | None = None
        try:
            value = parse_object(line.data, where, ended=line.ended)
            row = take_id(value, "custom_id", where)
            yield Question(row, take_text(value, "question", where), where)
        except RowError as e:
            yield Question(row, "", where, e)
