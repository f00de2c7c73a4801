"""One worker process as its parent sees it: start, tell, hear, end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...core.console import is_debug, is_quiet
from .pipes import Lines, pack, unpack, write_all
from .poison import Work
from .task import JobSpec

PIECE: Final = 1 << 16


class Child:
    """A process that runs ``worker``; opens its encoder at once.

    Args:
        place: which of the parent's places it fills.
        spec: the job, with the machine of this worker alone.
        encoder: ``module:function`` that opens the encoder.
    """

    def __init__(self, place: int, spec: JobSpec, encoder: str) -> None:
        self.place = place
        self.ready = False
        self.work: Work | None = None
        self.rows = 0
        self.unheard_s = 0.0
        """Seconds without any message."""
        self.unmoved_s = 0.0
        """Seconds without a finished row, or piece of work."""
        self._why = ""
        self._lines = Lines()
        command = [sys.executable, "-P", "-m", f"{__package__}.worker", str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=_environment(spec)
        )
        opening = {"spec": spec.to_json(), "encoder": encoder, "quiet": is_quiet(), "debug": is_debug()}
        self._tell("open", opening)

    def fileno(self) -> int:
        """What a selector waits for."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def give(self, work: Work) -> None:
        """Have it do something; it must have nothing to do."""
        self.work, self.rows, self.unmoved_s = work, 0, 0.0
        self._tell("work", work.to_json())

    def hear(self) -> Iterator[tuple[str, Any]]:
        """What it said; waits for nothing but the first byte. Raises EOFError where it has ended."""
        data = os.read(self.fileno(), PIECE)
        if not data:
            raise EOFError
        self.unheard_s = 0.0
        try:
            found = [unpack(line) for line in self._lines.feed(data)]
        except ValueError as error:
            self._why = f"it said what no worker says ({error})"
            raise EOFError from error
        for kind, value in found:
            if kind == "broken":
                self._why = value
                raise EOFError
            if kind == "rows":
                self.rows = value
            if kind != "beat":
                self.unmoved_s = 0.0
            yield kind, value

    def waited(self, seconds: float) -> None:
        """Time has passed."""
        self.unheard_s += seconds
        self.unmoved_s += seconds

    def kill(self) -> None:
        """At once: nothing that it holds is worth saving."""
        self._process.kill()

    def end(self, why: str = "") -> str:
        """See to it that it is dead, and say how that came; ``why`` if that is known better."""
        if why or self._why:
            self.kill()
        try:
            status = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:  # its pipe is closed, and yet it lives
            self.kill()
            status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return why or self._why or _describe(status)

    def _tell(self, kind: str, value: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead; the end of its output says so
            write_all(self._process.stdin.fileno(), pack(kind, value))


def _environment(spec: JobSpec) -> dict[str, str]:
    """Ours, with the same places to import from, and threads of numeric libraries as the machine says."""
    paths = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
    found = {**os.environ, "PYTHONPATH": paths}
    if spec.machine.threads is not None:
        found["OMP_NUM_THREADS"] = str(spec.machine.threads)
    return found


def _describe(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", perhaps by the system for want of memory" if -status == signal.SIGKILL else ""
    return f"the process was ended by {name}{hint}"
