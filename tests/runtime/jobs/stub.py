"""A job with an encoder that does nothing but count, so that what is tested is the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError, RowError
from latentwire.runtime import message
from latentwire.runtime.compress import Compressed
from latentwire.runtime.jobs.inprocess import InProcess
from latentwire.runtime.jobs.plan import Plan
from latentwire.runtime.jobs.planner import make_plan
from latentwire.runtime.jobs.records import Fields
from latentwire.runtime.jobs.run import Job, RunOptions, run_job
from latentwire.runtime.jobs.table import TableInfo
from latentwire.runtime.options import CompressOptions, Machine

SHARD_ROWS = 5
BAD = (3, 11)
"""Rows whose text is refused."""


class StubEncoder:
    """Sends the text itself; remembers how many it saw."""

    def __init__(self) -> None:
        self.rows = 0

    def compress_rows(
        self, texts: Sequence[str], options: CompressOptions, names: Sequence[str]
    ) -> list[Compressed | LatentWireError]:
        self.rows += len(texts)
        return [self._one(text, name) for text, name in zip(texts, names, strict=True)]

    def describe(self) -> dict[str, str]:
        return {"engine": "stub"}

    def _one(self, text: str, name: str) -> Compressed | LatentWireError:
        if text.startswith("bad"):
            return RowError(2005, "text is empty", where=name)
        return Compressed(message.from_text(text), len(text), len(text.encode()), False)


def write_input(path: Path, rows: int = 18) -> str:
    """Rows with ids; those of ``BAD`` will fail."""
    lines = [{"custom_id": f"r{i}", "text": f"{'bad' if i in BAD else 'text'} number {i}"} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def stub_job(name: str, codec: Any = "text", shard_rows: int = SHARD_ROWS) -> Job:
    """Four shards of five, five, five and three rows."""
    plan = make_plan([name], Fields(), shard_rows)
    return Job(plan, CompressOptions(codec), TableInfo("00" * 32, 8, 4, codec), Path("bundle"), {"encoder": "0"})


def run_stub(job: Job, out: Path, encoder: StubEncoder | None = None, options: RunOptions | None = None) -> Any:
    found = encoder or StubEncoder()
    return run_job(job, out, InProcess(lambda spec: found), Machine(), options)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file that a finished job has, by name."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "_LOCK"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_plan(plan: Plan, out: Path, encoder: StubEncoder | None = None) -> Any:
    """A job of texts as they are, over any plan."""
    table = TableInfo("00" * 32, 8, 4, "text", keep=plan.fields.keep)
    return run_stub(Job(plan, CompressOptions("text"), table, Path("bundle"), {"encoder": "0"}), out, encoder)
