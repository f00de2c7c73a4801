"""The folder of a run: its lock, its log, its config, fingerprints of its data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import message
from ..core.errors import ModelError
from ..core.extras import needs
from ..core.files import atomic_write_bytes, sha256_file
from ..core.locks import exclusive
from .config import Config
from .curves import read_log

if TYPE_CHECKING:
    from .board import Board

DATA_OPTIONS = ("data", "eval_data", "prose")


class RunFolder:
    """``last/``, ``best/``, ``log.jsonl`` and ``config.toml`` of one run.

    Args:
        path: the folder; made when something is written.
        writes: False in processes that only help.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self._board: Board | None = None

    @property
    def last(self) -> Path:
        """What a run resumes from."""
        return self.path / "last"

    @property
    def best(self) -> Path:
        """The lowest held-out NLL from latents."""
        return self.path / "best"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder: two processes that write one run would spoil it.

        Raises:
            ModelError: 3212 another process holds it.
        """
        if not self.writes:
            yield
            return
        with exclusive(self.path / "run.lock", self._in_use):
            yield

    def _in_use(self) -> None:
        raise ModelError(
            3212,
            "another process is training in this folder",
            where=str(self.path),
            fix="wait for it or end it, or use another folder",
        )

    def show_on_board(self, step: int) -> None:
        """Also write what is logged as TensorBoard events from now on.

        Raises:
            EnvironmentFault: 5011 TensorBoard is not installed.
        """
        if self.writes:
            with needs("train"):
                from .board import Board
            self._board = Board(self.path / "tensorboard", step)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to ``log.jsonl``; anything but a step is also shown."""
        if not self.writes:
            return
        line = json.dumps({"time": round(time.time(), 1), **record})
        if record["event"] != "step":
            message(line)
        path = self.path / "log.jsonl"
        # A process that was killed may have left half a line, which must not spoil the next one.
        torn = path.is_file() and path.stat().st_size > 0 and not _ends_line(path)
        with path.open("a", encoding="utf-8") as f:
            f.write("\n" * torn + line + "\n")
        if self._board:
            self._board.add(record)

    def evals(self) -> dict[int, float]:
        """Step -> held-out NLL from latents, mean over the LLMs, of every measurement in the log."""
        path = self.path / "log.jsonl"
        records = read_log(path) if path.is_file() else []
        return {int(r["step"]): held_out(r) for r in records if r["event"] == "eval"}

    def write_config(self, config: Config) -> None:
        """``config.toml``, from which ``latentwire train --config`` starts the same run."""
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.path / "config.toml", to_toml(config).encode())


def _ends_line(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(-1, 2)
        return f.read(1) == b"\n"


def held_out(record: dict[str, Any]) -> float:
    """Mean NLL of the rows ``LLM/latents`` of a measurement."""
    found = [float(row["nll"]) for name, row in record.items() if name.endswith("/latents")]
    return sum(found) / len(found)


def fingerprints(config: Config) -> dict[str, list[str]]:
    """SHA-256 of each data file, by option.

    Raises:
        EnvironmentFault: 5009 a file cannot be read.
    """
    return {name: [sha256_file(path) for path in getattr(config, name)] for name in DATA_OPTIONS}


def to_toml(config: Config) -> str:
    """Every option with its value; features and stages as tables."""
    plain = config.to_json()
    stages = plain.pop("stage")
    tables = {name: plain.pop(name) for name, value in config.to_json().items() if isinstance(value, dict)}
    lines = [f"{name} = {_value(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    for stage in stages:
        lines += ["", "[[stage]]", *(f"{name} = {_value(value)}" for name, value in stage.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    # JSON writes strings, numbers, booleans and lists as TOML does, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
