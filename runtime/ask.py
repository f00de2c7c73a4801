"""Questions about rows of frames: which question meets which row, and the answers as they come.

In: rows, questions, a pipeline. Out: one result per question and row, in the order of rows. Knows nothing of
files and of what is printed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..core.errors import LatentWireError, RowError
from .answer import Answer
from .jobs.questions import Question
from .jobs.table import StoredRow
from .options import GenerateOptions
from .pipeline import Context

GROUP: Final = 256
"""Questions that are sorted by length together; results come a group at a time."""


class Answering(Protocol):
    """Whoever answers: a pipeline, or several as one."""

    def answers(
        self,
        contexts: Sequence[Context],
        prompts: Sequence[str],
        options: GenerateOptions,
        done: Callable[[int], None],
    ) -> list[Answer | LatentWireError]:
        """As ``Pipeline.answers``."""


@dataclass(frozen=True)
class Result:
    """What came of one question about one row: an answer or an error."""

    custom_id: str
    question: str
    row: StoredRow | None
    outcome: Answer | LatentWireError


def ask(
    pipe: Answering,
    rows: Iterable[StoredRow],
    questions: Sequence[Question],
    options: GenerateOptions,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[Result]:
    """Answers in the order of rows, and within a row in the order of questions.

    A question that cannot be read, a row that was already an error and an id that no row has are results too.

    Raises:
        InputError, FrameError: from reading rows.
    """
    yield from (Result(q.row or "", q.text, None, q.error) for q in questions if q.error)
    general = [q for q in questions if not q.error and q.row is None]
    special: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if not question.error and question.row is not None:
            special[question.row].append(question)
    pending: list[tuple[StoredRow, Question]] = []
    for row in rows:
        pending += [(row, q) for q in [*general, *special.pop(row.custom_id, [])]]
        if len(pending) >= GROUP:
            yield from _answer(pipe, pending, options, done)
            pending = []
    yield from _answer(pipe, pending, options, done)
    yield from (Result(q.row or "", q.text, None, _unknown(q)) for found in special.values() for q in found)


def _answer(
    pipe: Answering, pairs: Sequence[tuple[StoredRow, Question]], options: GenerateOptions, done: Callable[[int], None]
) -> Iterator[Result]:
    asked = [(row.message, q.text) for row, q in pairs if row.message]
    found = iter(pipe.answers([m for m, _ in asked], [text for _, text in asked], options, done))
    for row, question in pairs:
        outcome = next(found) if row.message else _not_compressed(row)
        yield Result(row.custom_id, question.text, row, outcome)


def _not_compressed(row: StoredRow) -> LatentWireError:
    what = f"row was not compressed ({row.error_code})"
    return RowError(2012, what, where=f"row {row.row_index} (id {row.custom_id})", expected=row.error_message)


def _unknown(question: Question) -> LatentWireError:
    expected = f"expected the custom_id of a row, got {question.row!r}"
    return RowError(2011, "question about a row that is not there", where=question.where, expected=expected)
