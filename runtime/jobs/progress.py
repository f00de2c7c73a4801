"""What people and programs see of a running job: a bar, or a JSON line every few seconds, and ``_progress.json``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from ...core.console import Progress, message, progress_interval, track
from .commit import JobFolder
from .totals import Totals

EVERY_S: Final = 2.0
"""Seconds between two versions of ``_progress.json``."""


class JobProgress:
    """Counts rows while shards run and when they are committed."""

    def __init__(self, folder: JobFolder, attempt: str, rows: int, totals: Totals, bar: Progress | None) -> None:
        self._folder, self._attempt, self._rows, self._totals, self._bar = folder, attempt, rows, totals, bar
        self._running: Counter[int] = Counter()
        self._before = totals["rows"]
        self._tokens_before = totals["tokens"]
        self._shown = 0
        self._start = self._written = self._told = time.monotonic()
        self._shard = -1

    def on_rows(self, shard: int, done: int) -> None:
        """``done`` rows of a shard are finished so far."""
        self._running[shard] = done
        self._shard = shard
        self._tell()

    def committed(self, facts: Mapping[str, Any]) -> None:
        """A shard is done; its facts are in the totals already."""
        self._running.pop(facts["shard"], None)
        self._shard = facts["shard"]
        self._tell()

    def facts(self) -> dict[str, Any]:
        """The line: rows, errors, speed, seconds left. Speeds are of this run."""
        done = self._totals["rows"] + sum(self._running.values())
        seconds = max(time.monotonic() - self._start, 1e-9)
        per_s = (done - self._before) / seconds
        return {
            "step": "compress",
            "rows_done": done,
            "rows_error": self._totals["errors"],
            "rows_total": self._rows,
            "rows_per_s": round(per_s, 3),
            "tokens_per_s": round((self._totals["tokens"] - self._tokens_before) / seconds, 1),
            "eta_s": round((self._rows - done) / per_s, 1) if per_s > 0 else None,
            "shard": self._shard,
        }

    def _tell(self) -> None:
        now = time.monotonic()
        facts = self.facts()
        if self._bar is not None:
            self._bar.advance(facts["rows_done"] - self._before - self._shown)
            self._shown = facts["rows_done"] - self._before
            self._bar.note(f"{facts['tokens_per_s']:.0f} tokens/s, {facts['rows_error']} bad rows")
        elif now - self._told >= progress_interval():
            self._told = now
            message(json.dumps(facts))
        if now - self._written >= EVERY_S:
            self._written = now
            self._folder.put_progress(self._attempt, {**facts, "time": round(time.time(), 1)})


@contextmanager
def job_progress(folder: JobFolder, attempt: str, rows: int, totals: Totals) -> Iterator[JobProgress]:
    """Show the job's progress until the block ends; a bar on a terminal, else JSON lines."""
    with ExitStack() as stack:
        bar = None
        if sys.stderr.isatty():
            bar = stack.enter_context(track("compress", rows - totals["rows"], "rows"))
        shown = JobProgress(folder, attempt, rows, totals, bar)
        yield shown
        if bar is None:
            message(json.dumps(shown.facts()))
