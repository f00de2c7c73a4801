"""What is measured on: a fixed list of real texts with questions, and texts of other lengths made of them.

In: the list that ships, or a JSONL file of the same form. Out: samples, and the SHA-256 that names the list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..core.errors import InputError

SHIPPED = "texts.jsonl"


@dataclass(frozen=True)
class Sample:
    """One text and one question about it, with the answers that people gave."""

    text: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    """Samples in a fixed order. Every text once with its first question, then the second questions, and so on.

    Attributes:
        samples: at least one.
        sha256: of the file they came from, hex.
        name: of that file.
    """

    samples: tuple[Sample, ...]
    sha256: str
    name: str

    def take(self, count: int) -> list[Sample]:
        """The first ``count`` samples; the list starts again where it ends."""
        return [self.samples[i % len(self.samples)] for i in range(count)]

    def facts(self, count: int) -> dict[str, Any]:
        """What a report says about the first ``count``: name, hash, texts and bytes a text (p50, p95, max)."""
        chosen = self.take(count)
        sizes = sorted(len(s.text.encode()) for s in chosen)
        return {
            "name": self.name,
            "sha256": self.sha256,
            "samples": count,
            "distinct_texts": len({s.text for s in chosen}),
            "text_bytes": {"p50": sizes[len(sizes) // 2], "p95": sizes[int(len(sizes) * 0.95)], "max": sizes[-1]},
        }


def load_inputs(path: Path | None = None) -> Inputs:
    """The list that ships, or the JSONL file at ``path``: ``{"text", "questions": [{"question", "answers"}]}`` a line.

    Raises:
        InputError: 2106 the file cannot be read; 2104 nothing in it; 2111 a line of another form.
    """
    name = SHIPPED if path is None else path.name
    try:
        data = resources.files(__package__).joinpath(SHIPPED).read_bytes() if path is None else path.read_bytes()
    except OSError as e:
        raise InputError(2106, "benchmark texts cannot be read", where=str(path), expected=str(e)) from e
    rows: list[tuple[int, int, Sample]] = []
    for number, line in enumerate(data.splitlines()):
        try:
            row = json.loads(line)
            asked = [(q["question"], tuple(map(str, q["answers"]))) for q in row["questions"]]
            found = [Sample(str(row["text"]), str(q), a) for q, a in asked]
        except (ValueError, KeyError, TypeError) as e:
            expected = f'expected {{"text", "questions": [{{"question", "answers"}}]}}, {type(e).__name__}: {e}'
            raise InputError(2111, "not a benchmark text", where=f"{name}:{number + 1}", expected=expected) from e
        rows += [(place, number, sample) for place, sample in enumerate(found)]
    if not rows:
        raise InputError(2104, "no benchmark texts", where=name)
    ordered = tuple(sample for _, _, sample in sorted(rows, key=lambda row: row[:2]))
    return Inputs(ordered, hashlib.sha256(data).hexdigest(), name)


def resized(samples: Sequence[Sample], size: int) -> list[Sample]:
    """The same questions about texts of about ``size`` UTF-8 bytes: cut, or followed by the next texts of the list."""
    texts = [s.text for s in samples]
    out = []
    for index, sample in enumerate(samples):
        text, after = sample.text, index + 1
        while len(text.encode()) < size:
            text += "\n\n" + texts[after % len(texts)]
            after += 1
        cut = text.encode()[:size].decode(errors="ignore").rsplit(" ", 1)[0]
        out.append(Sample(cut, sample.question, sample.answers))
    return out
