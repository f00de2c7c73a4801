"""Question files -> what a short run trains on and what it is judged by, as files of their own.

Contexts are dealt out by a hash of their text, so that more data never moves one from one side to the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..core.errors import InputError
from ..core.files import atomic_write_bytes
from .data import Item

HELD_OUT: Final = 10
"""One context of so many is held out."""


def split(items: Sequence[Item], folder: Path) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``held-out.jsonl`` into ``folder``; their paths.

    Raises:
        InputError: 2104 too few contexts for both.
    """
    held = [item for item in items if _number(item) == 0]
    train = [item for item in items if _number(item) != 0]
    if len(held) < 2 or not train:
        expected = f"expected some {2 * HELD_OUT} contexts at least, got {len(items)}"
        fix = "more data, or --eval-data with questions about other texts"
        raise InputError(2104, "too little data to hold some out", expected=expected, fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, part in zip(paths, (train, held), strict=True):
        atomic_write_bytes(path, "".join(map(_lines, part)).encode())
    return paths


def write_passages(items: Sequence[Item], path: Path) -> None:
    """The contexts as passages of prose: a Parquet file with the column ``text``."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [item.context for item in items]}), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def _number(item: Item) -> int:
    return int.from_bytes(hashlib.sha256(item.context.encode()).digest()[:4], "big") % HELD_OUT


def _lines(item: Item) -> str:
    rows = [{"context": item.context, "question": q.text, "answers": q.answers, "id": q.id} for q in item.questions]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
