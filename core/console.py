"""What a command shows: progress on stderr, results on stdout, one line for an error.

In: counts, rows, exceptions. Out: text, exit codes. Knows nothing of models or jobs. Rich is imported when a
bar is drawn, so that ``--help`` stays quick.

On a terminal progress is a bar. Elsewhere it is one JSON line every few seconds:
``{"step": "download", "done": 12, "total": 90, "per_s": 3.1, "eta_s": 25.2}``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from .errors import EXIT_OK, EnvironmentFault, LatentWireError
from .files import as_fault

EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143
EXIT_PIPE: Final = 141

P = ParamSpec("P")
T = TypeVar("T")


class _Settings:
    """How this process talks; set once by a command's options."""

    quiet = False
    debug = os.environ.get("LATENTWIRE_DEBUG", "") not in ("", "0")
    every_s = 5.0


def configure(*, quiet: bool | None = None, debug: bool | None = None, every_s: float | None = None) -> None:
    """Set ``--quiet``, ``--debug`` and the seconds between progress lines; None leaves a value as it is."""
    _Settings.quiet = _Settings.quiet if quiet is None else quiet
    _Settings.debug = _Settings.debug if debug is None else debug
    _Settings.every_s = _Settings.every_s if every_s is None else every_s


class Progress(Protocol):
    """What ``track`` yields."""

    def advance(self, count: float = 1) -> None:
        """``count`` more units are done."""

    def total(self, total: float | None) -> None:
        """The number of units became known or changed."""

    def note(self, text: str) -> None:
        """A few words beside the count, as a speed; the last ones are shown."""


@contextmanager
def track(
    description: str,
    total: float | None = None,
    unit: str = "it",
    *,
    quiet: bool | None = None,
    every_s: float | None = None,
) -> Iterator[Progress]:
    """Show progress of one step on stderr until the block ends.

    Args:
        description: name of the step, a few words.
        total: units to do; None where unknown.
        unit: ``B`` is shown as bytes, anything else as a count.
        quiet: show nothing; default as configured.
        every_s: seconds between JSON lines where stderr is no terminal; default as configured (5).
    """
    if _Settings.quiet if quiet is None else quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        yield from _bar(description, total, unit)
    else:
        lines = _Lines(description, total, unit, _Settings.every_s if every_s is None else every_s)
        yield lines
        lines.emit()


def is_quiet() -> bool:
    """``--quiet`` was given; commands that run others pass it on."""
    return _Settings.quiet


def is_debug() -> bool:
    """``--debug`` was given; commands that run others pass it on."""
    return _Settings.debug


def progress_interval() -> float:
    """Seconds between progress lines, as configured."""
    return _Settings.every_s


def message(text: str) -> None:
    """A line for people, on stderr; nothing when quiet."""
    if not _Settings.quiet:
        print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on stdout: drawn on a terminal, plain aligned text elsewhere; numbers stand right."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title or None)
        for name, numeric in zip(columns, right, strict=True):
            table.add_column(name, justify="right" if numeric else "left")
        for row in cells:
            table.add_row(*row)
        Console().print(table, markup=False)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    if title:
        print(title)
    for row in [list(columns), ["-" * width for width in widths], *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(padded).rstrip())
    sys.stdout.flush()


def print_text(text: str = "") -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)


def print_json(obj: Any) -> None:
    """One JSON value on one line of stdout, for programs (``--json``)."""
    print(json.dumps(obj, sort_keys=True, ensure_ascii=False, allow_nan=False), flush=True)


def run_cli(fn: Callable[[], int | None], *, debug: bool | None = None) -> None:
    """Run a command's body and turn what it raises into an exit status.

    LatentWireError: its line on stderr, its exit code, no traceback unless debugging. Disk faults and lack of
    memory get the same treatment. Ctrl-C: 130. SIGTERM: 143, after temporary files were removed. A reader that
    closed the pipe: 141. Other exceptions are mistakes of ours and pass with their traceback.
    Raises SystemExit unless the status is 0.
    """
    try:
        with _sigterm_as_exception():
            status = fn() or EXIT_OK
    except LatentWireError as error:
        status = _report(error, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        status = EXIT_PIPE
    except OSError as error:
        fault = as_fault(error)
        if fault is None:
            raise
        status = _report(fault, debug)
    except MemoryError:
        status = _report(
            EnvironmentFault(5003, "out of memory", fix="lower --batch-size or close other programs"), debug
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except Terminated:
        print("terminated", file=sys.stderr)
        status = EXIT_TERMINATED
    if status != EXIT_OK:
        raise SystemExit(status)


def command(fn: Callable[P, int | None]) -> Callable[P, None]:
    """Decorator: the function becomes a command body under ``run_cli``; its signature stays visible to Typer."""

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        run_cli(functools.partial(fn, *args, **kwargs))

    return wrapper


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that only cleanup code sees it pass."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(error: LatentWireError, debug: bool | None) -> int:
    if _Settings.debug if debug is None else debug:
        traceback.print_exception(error)
    print(error, file=sys.stderr, flush=True)
    return error.exit_code


class _Silent:
    def advance(self, count: float = 1) -> None:
        pass

    def total(self, total: float | None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Lines:
    """Progress where nobody watches: JSON lines."""

    def __init__(self, step: str, total: float | None, unit: str, every_s: float) -> None:
        self._step, self._total, self._unit, self._every_s = step, total, unit, every_s
        self._done, self._note = 0.0, ""
        self._start = self._last = time.monotonic()

    def advance(self, count: float = 1) -> None:
        self._done += count
        if time.monotonic() - self._last >= self._every_s:
            self.emit()

    def total(self, total: float | None) -> None:
        self._total = total

    def note(self, text: str) -> None:
        self._note = text

    def emit(self) -> None:
        self._last = time.monotonic()
        per_s = self._done / max(self._last - self._start, 1e-9)
        left = None if self._total is None or per_s == 0 else max(self._total - self._done, 0) / per_s
        line: Mapping[str, object] = {
            "step": self._step,
            "done": _plain(self._done),
            "total": _plain(self._total),
            "unit": self._unit,
            "per_s": round(per_s, 3),
            "eta_s": None if left is None else round(left, 1),
            **({"note": self._note} if self._note else {}),
        }
        print(json.dumps(line), file=sys.stderr, flush=True)


def _plain(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def _bar(description: str, total: float | None, unit: str) -> Iterator[Progress]:
    from rich import progress as rp
    from rich.console import Console

    amount: rp.ProgressColumn = rp.DownloadColumn() if unit == "B" else rp.MofNCompleteColumn()
    speed: rp.ProgressColumn = rp.TransferSpeedColumn() if unit == "B" else rp.TimeElapsedColumn()
    columns = (rp.TextColumn("{task.description}"), rp.BarColumn(), amount, speed, rp.TimeRemainingColumn())
    with rp.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total)
        yield _RichTask(bars, task, description)


class _RichTask:
    def __init__(self, bars: Any, task: Any, description: str) -> None:
        self._bars, self._task, self._description = bars, task, description

    def advance(self, count: float = 1) -> None:
        self._bars.advance(self._task, count)

    def total(self, total: float | None) -> None:
        self._bars.update(self._task, total=total)

    def note(self, text: str) -> None:
        self._bars.update(self._task, description=f"{self._description}  {text}")
