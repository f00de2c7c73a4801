"""The log as TensorBoard events, beside ``log.jsonl``: every number of a record under the record's step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes event files into a folder.

    Args:
        folder: made if it is not there.
        step: events of an earlier attempt behind this step are hidden, as the log's later record counts.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """One record of the log; records without a step and values without a number are left out."""
        if record["event"] not in ("step", "eval"):
            return
        for name, value in _numbers(record):
            self._writer.add_scalar(f"{record['event']}/{name}", value, record["step"])
        self._writer.flush()


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("time", "step", "questions"):
            yield prefix + name, float(value)
