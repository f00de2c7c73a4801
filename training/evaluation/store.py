"""Finished rows on disk, question by question, so that an interrupted evaluation goes on where it stood.

One JSON object a line: ``key`` (of everything that a figure depends on), ``llm``, ``kind`` and the answers. A line
that was cut short by a kill is skipped when read, and its row is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.files import disk_faults

if TYPE_CHECKING:
    from ..evaluate import Answers


class Rows:
    """Rows of one evaluation.

    Args:
        path: the file; None keeps nothing.
        facts: what every row depends on besides its LLM and kind, JSON values; rows of other facts are not seen.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("key") == self.key:
                self._found[record["llm"], record["kind"]] = record["answers"]

    def get(self, llm: str, kind: str) -> Answers | None:
        """The answers of one row, if it was finished."""
        record = self._found.get((llm, kind))
        return None if record is None else _answers(record)

    def add(self, llm: str, kind: str, answers: Answers) -> None:
        """Keep a finished row.

        Raises:
            EnvironmentFault: 5004, 5005 it cannot be written.
        """
        record = {f.name: _plain(getattr(answers, f.name)) for f in fields(answers)}
        self._found[llm, kind] = record
        if self.path is None:
            return
        line = json.dumps({"key": self.key, "llm": llm, "kind": kind, "answers": record}, ensure_ascii=False)
        with disk_faults(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as f:
                # A line of its own even behind one that was cut short.
                f.write(("\n" * (f.tell() > 0) + line).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _answers(record: Mapping[str, Any]) -> Answers:
    from ..evaluate import Answers

    values = dict(record)
    for name in ("nll", "first", "positions", "top5", "guess", "f1", "exact"):
        values[name] = None if values[name] is None else np.array(values[name])
    values["sizes"] = {form: np.array(sizes) for form, sizes in values["sizes"].items()}
    values["texts"] = tuple(values["texts"])
    return Answers(**values)
