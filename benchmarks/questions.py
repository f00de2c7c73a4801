"""Held-out questions as training keeps them: one JSON object a line, with ``context``, ``question``, ``answers``.

In: a file, perhaps gzipped. Out: samples, the same that ``latentwire eval`` draws with the same number and seed.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from .inputs import Sample


def load_questions(path: Path, count: int, seed: int = 0) -> list[Sample]:
    """``count`` questions of whole texts in a seeded order, those of one text next to each other.

    Raises:
        InputError: 2106 the file cannot be read; 2104 nothing in it; 2111 a line of another form.
    """
    texts: dict[str, list[Sample]] = defaultdict(list)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as e:
        raise InputError(2106, "questions cannot be read", where=str(path), expected=str(e)) from e
    for number, line in enumerate(data.splitlines()):
        try:
            row = json.loads(line)
            answers = tuple(map(str, row["answers"]))
            sample = Sample(str(row["context"]), str(row["question"]).strip(), answers)
        except (ValueError, KeyError, TypeError) as e:
            expected = f'expected {{"context", "question", "answers"}}, {type(e).__name__}: {e}'
            raise InputError(2111, "not a question", where=f"{path.name}:{number + 1}", expected=expected) from e
        texts[sample.text].append(sample)
    if not texts:
        raise InputError(2104, "no questions", where=str(path))
    grouped = list(texts.values())
    drawn = [sample for i in np.random.default_rng(seed).permutation(len(grouped)) for sample in grouped[i]]
    return drawn[:count]
