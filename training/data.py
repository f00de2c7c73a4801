"""Text -> training items: a context and the branches that ask about it.

Every batch is a pure function of (seed, number): nothing is drawn from a global generator, so a resumed run sees
the same batches as one that was never stopped.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.prompt import CLOZE_TEMPLATE

SENTENCE = re.compile(r"(?<=[.!?])\s+")
BLANKABLE = re.compile(r"(?<!^)(?<![.!?] )\b(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d,.:]*\d|\d|[a-z][\w'-]{6,})\b")
"""Names, numbers and long words that do not open their sentence: what a cloze question asks for."""

LONGEST = {"context": 1_000_000, "question": 4_000, "answer": 1_000}
"""Characters of a field: beyond that a row is a mistake, and would not fit into memory as a prompt."""


@dataclass(frozen=True)
class Question:
    """A question about a context, and one answer that stands in it."""

    text: str
    answers: tuple[str, ...]
    id: str = ""


@dataclass(frozen=True)
class Item:
    """A context with its questions; ``questions`` is empty for prose, whose questions are made on the fly."""

    context: str
    questions: tuple[Question, ...]


def read_questions(paths: Sequence[str]) -> list[Item]:
    """Items of JSONL(.gz) files with ``context``, ``question``, ``answers``; questions are grouped by context.

    Raises:
        InputError: 2103 damaged gzip, 2104 missing file, 2107 a row that is not UTF-8 or JSON, without the fields,
            with one that is too long, or whose answer is not in its context.
    """
    grouped: dict[str, list[Question]] = defaultdict(list)
    for name in paths:
        for where, row in _json_lines(Path(name)):
            context, question, answers = (row.get(key) for key in ("context", "question", "answers"))
            if not (isinstance(context, str) and context.strip() and isinstance(question, str) and question.strip()):
                raise InputError(2107, "context or question missing or empty", where=where)
            if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
                raise InputError(2107, "answers missing or empty", where=where)
            if not any(a in context for a in answers):
                raise InputError(2107, "no answer stands in the context", where=where, expected=f"got {answers[0]!r}")
            for label, text in (("context", context), ("question", question), *(("answer", a) for a in answers)):
                if len(text.strip()) > LONGEST[label]:
                    expected = f"expected at most {LONGEST[label]} characters, got {len(text.strip())}"
                    raise InputError(2107, f"{label} too long", where=where, expected=expected)
            grouped[context].append(Question(question.strip(), tuple(answers), str(row.get("id", where))))
    return [Item(context, tuple(questions)) for context, questions in grouped.items()]


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(2104, "no such file", where=str(path))
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as e:
            raise InputError(2107, "not JSON", where=where, expected=str(e)) from e
        if not isinstance(row, dict):
            raise InputError(2107, "not a JSON object", where=where)
        yield where, row


def _lines(path: Path) -> Iterator[str]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as f:
            yield from f
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise InputError(2103, "damaged gzip file", where=str(path), expected=str(e)) from e
    except UnicodeDecodeError as e:
        raise InputError(2107, "not UTF-8", where=str(path), expected=str(e)) from e


def read_prose(paths: Sequence[str]) -> list[Item]:
    """Passages of Parquet files with a ``text`` column; rows without text are left out.

    Raises:
        InputError: 2104 missing file, 2101 no such column, 2102 damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    items: list[Item] = []
    for name in paths:
        if not Path(name).is_file():
            raise InputError(2104, "no such file", where=name)
        try:
            if "text" not in pq.read_schema(name).names:
                raise InputError(2101, "wrong Parquet schema", where=name, expected="expected a column 'text'")
            texts = pq.read_table(name, columns=["text"]).column("text").cast(pa.string()).to_pylist()
        except pa.ArrowInvalid as e:
            raise InputError(2102, "damaged Parquet file", where=name, expected=str(e)) from e
        items += [Item(text, ()) for text in texts if text and text.strip()]
    return items


EXCERPT = 300
"""Characters that the text of a worked example should not go beyond."""


def worked_example(item: Item, number: int) -> Item:
    """One question of an item with an excerpt of its context: the sentence that holds the answer, and what follows."""
    question = item.questions[number]
    answer = next((a for a in question.answers if a in item.context), question.answers[0])
    at, start = item.context.find(answer), 0
    sentences: list[str] = []
    for sentence in SENTENCE.split(item.context):
        end = item.context.index(sentence, start) + len(sentence)
        if at < end and (not sentences or len(" ".join((*sentences, sentence))) <= EXCERPT):
            sentences.append(sentence)
        start = end
    # An answer over two sentences needs both.
    excerpt = " ".join(sentences) if answer in " ".join(sentences) else item.context
    return Item(excerpt, (Question(question.text, (answer,), question.id),))


def cloze(context: str, rng: np.random.Generator, most: int) -> list[Question]:
    """Up to ``most`` fill-in questions, each from another sentence of the context."""
    found: list[Question] = []
    sentences = [s for s in SENTENCE.split(context) if 30 <= len(s) <= 240]
    for index in rng.permutation(len(sentences))[: 2 * most]:
        sentence = sentences[index]
        spans = [m.span() for m in BLANKABLE.finditer(sentence)]
        if not spans:
            continue
        start, end = spans[rng.integers(len(spans))]
        blanked = f"{sentence[:start]}____{sentence[end:]}"
        found.append(Question(CLOZE_TEMPLATE.format(sentence=blanked), (sentence[start:end],)))
        if len(found) == most:
            break
    return found


class Sampler:
    """Item indices of micro-batch ``k`` of one stream, as a pure function of (seed, k).

    An epoch is a seeded permutation; inside windows of 32 batches items are sorted by length, so that a batch holds
    texts of similar length, and the batches of a window are shuffled again.
    """

    WINDOW = 32

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        if len(lengths) < batch:
            raise InputError(
                2104, "too little data", expected=f"expected at least {batch} contexts, got {len(lengths)}"
            )
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self.per_epoch = len(lengths) // batch
        self._epoch: tuple[int, np.ndarray[Any, Any]] | None = None

    def __call__(self, k: int) -> list[int]:
        epoch, number = divmod(k, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return [int(i) for i in self._epoch[1][number]]

    def _order(self, epoch: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))[: self.per_epoch * self.batch]
        window = self.WINDOW * self.batch
        batches: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")].reshape(-1, self.batch)
            batches += list(part[rng.permutation(len(part))])
        return np.stack(batches)
