"""Starts processes that run the stub job, cheaply: imports once, then forks. One JSON request a line, one reply.

Each job is the leader of its own process group, as it would be in a shell.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentwire.core.console import configure, run_cli
from latentwire.runtime.jobs.stopping import GRACE_S, prompt_stop

from .stub import StubEncoder, run_stub, stub_job


class Slow(StubEncoder):
    """Takes its time, waits where it is told to, and keeps count in a file that survives it."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__()
        self._deaf = request.get("deaf", False)
        self._sleep_s, self._count, self._wait = request["sleep_s"], request.get("count"), request.get("wait")

    def compress_rows(self, texts: Any, options: Any, names: Any) -> Any:
        time.sleep(self._sleep_s)
        if self._deaf:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # minutes in a library that hears no signals
        while self._wait and not Path(self._wait).exists():
            time.sleep(0.002)
        if self._count:
            with Path(self._count).open("ab") as file:
                file.write(b"x" * len(texts))
        return super().compress_rows(texts, options, names)


def job(request: dict[str, Any]) -> int:
    """Body of the command: 3, as two rows of the stub job are bad."""
    with prompt_stop(request.get("grace_s", GRACE_S)):
        made = run_stub(stub_job(request["input"]), Path(request["out"]), Slow(request))
    return 3 if made["totals"]["errors"] else 0


def fork(body: Callable[[], int], limit: int | None = None) -> int:
    """A process in a group of its own that runs ``body`` as a command does; ``limit``: bytes of a file."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_cli(body)
        status = 0
    except SystemExit as e:
        status = int(e.code or 0)
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    """Exit status; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def one(request: dict[str, Any]) -> dict[str, Any]:
    """Run a job, and after ``kill_s`` send ``signal`` to its group; how it ended, and how long after the signal."""
    child = fork(lambda: job(request), request.get("limit"))
    if "signal" not in request:
        return {"status": status_of(child)}
    time.sleep(request["kill_s"])
    sent = time.monotonic()
    try:
        os.killpg(child, request["signal"])
    except ProcessLookupError:  # it has not made its group yet, or is gone
        os.kill(child, request["signal"])
    return {"status": status_of(child), "seconds": time.monotonic() - sent}


def two(request: dict[str, Any]) -> dict[str, Any]:
    """Two jobs on one folder at once; the encoder of whoever gets the lock waits for the other to end."""
    children = [fork(lambda: job(request)) for _ in range(2)]
    first, status = os.waitpid(-1, 0)
    Path(request["wait"]).touch()
    (second,) = set(children) - {first}
    return {"statuses": [os.waitstatus_to_exitcode(status), status_of(second)]}


def main() -> None:
    configure(quiet=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"one": one, "two": two}[request["do"]](request)), flush=True)


if __name__ == "__main__":
    main()
