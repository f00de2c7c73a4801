"""A measured process, seen from the one that measures: started, asked, watched, ended.

In: a command that speaks ``peers.serve``. Out: its replies. A process that dies, hangs or answers nonsense is a
``ChildFault``, never a wait without end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

TIMEOUT_S: Final = 900.0
OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}
"""Nothing that is measured may wait for a network."""


class ChildFault(Exception):
    """A measured process failed; the message says how, with its last words. Becomes a row of the table."""


class Child:
    """One process.

    Args:
        name: for messages.
        command: what to start.
        cwd: folder it starts in; None: this one.
        env: variables added to this process's own.
        timeout_s: longest wait for a reply.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name, self._timeout_s = name, timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by ``close``
        self.started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**os.environ, **OFFLINE, **(env or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except OSError as e:
            self._log.close()
            raise ChildFault(f"{name}: cannot start {command[0]}: {e}") from e
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            ChildFault: the process said so, ended, or said nothing for ``timeout_s``.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self._timeout_s)
        except OSError:
            line = b""
        except queue.Empty:
            self.kill()
            raise ChildFault(f"{self.name}: no answer to {op} within {self._timeout_s:g} s") from None
        if not line:
            raise ChildFault(f"{self.name}: ended with status {self._process.wait()}: {self._last_words()}")
        try:
            reply: dict[str, Any] = json.loads(line)
            sound = reply["ok"]
        except (ValueError, KeyError, TypeError):
            self.kill()
            raise ChildFault(f"{self.name}: no reply but {line[:200]!r}") from None
        if not sound:
            raise ChildFault(f"{self.name}: {op}: {reply.get('error', 'unknown')}")
        return reply

    def close(self) -> None:
        """Let it end; kill it if it does not."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it is gone already
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # closed while reading
            pass
        self._lines.put(b"")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [x for x in self._log.read().decode(errors="replace").splitlines() if x.strip()]
        return " / ".join(lines[-2:])[-400:] or "it said nothing"
