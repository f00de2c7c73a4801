"""A worker process: opens an encoder, runs shards that its parent names, dies with its parent.

    python -m latentwire.runtime.jobs.worker PARENT_PID < messages > messages

``pipes`` says what the messages are. Nothing here is worth saving at an end: what is committed is on the disk.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ...core.console import configure, is_debug
from ...core.errors import EnvironmentFault, LatentWireError
from .pipes import BEAT_S, Lines, encoder_opener, error_to_json, pack, unpack, write_all
from .poison import Work
from .shard import Encoder
from .task import JobSpec, run_shard

_PR_SET_PDEATHSIG: Final = 1
RETRIED: Final = {5001, 5003}
"""Faults of a device that another process may not have: a CUDA error that sticks, memory."""

Say = Callable[[str, object], None]


def main() -> None:
    """Work until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    die_with(int(sys.argv[1]))
    say = _speaker()
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    threading.Thread(target=_beat, args=(say,), daemon=True).start()
    spec, encoder = open_spec(inbox.get()[1], say)
    while True:
        run_work(spec, Work.from_json(inbox.get()[1]), encoder, say)


def run_work(spec: JobSpec, work: Work, encoder: Encoder, say: Say) -> None:
    """Do one piece and say how it went; SystemExit where this process should not go on."""
    try:
        facts = run_shard(
            spec,
            work.shard,
            encoder,
            rows=work.rows,
            poison=work.poison,
            on_rows=lambda done: say("rows", done),
        )
    except LatentWireError as error:
        if isinstance(error, EnvironmentFault) and error.code in RETRIED:
            _break(say, str(error))
        say("failed", error_to_json(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, a fresh process may do better
        _break(say, f"{type(error).__name__}: {error}")
    else:
        say("done", facts)


def die_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; elsewhere the pipe's end must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def open_spec(found: dict[str, Any], say: Say) -> tuple[JobSpec, Encoder]:
    """Open the encoder and say so; SystemExit where that fails, after saying why."""
    configure(quiet=found["quiet"], debug=found["debug"])
    spec = JobSpec.from_json(found["spec"])
    try:
        encoder = encoder_opener(found["encoder"])(spec)
    except LatentWireError as error:
        say("refused", error_to_json(error))
        raise SystemExit(1) from error
    except Exception as error:  # noqa: BLE001  # the parent says it in one line
        _break(say, f"{type(error).__name__}: {error}")
    say("ready", {})
    return spec, encoder


def _break(say: Say, why: str) -> NoReturn:
    if is_debug():
        traceback.print_exc()
    say("broken", why[:1000])
    raise SystemExit(1)


def _speaker() -> Say:
    """The only way to standard output; what libraries print goes to standard error."""
    handle = os.dup(1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(kind: str, value: object) -> None:
        with lock:
            try:
                write_all(handle, pack(kind, value))
            except OSError:  # nobody listens any more
                os._exit(1)

    return say


def _listen(inbox: queue.SimpleQueue[tuple[str, Any]]) -> None:
    lines = Lines()
    while data := os.read(0, 1 << 16):
        for line in lines.feed(data):
            inbox.put(unpack(line))
    os._exit(0)


def _beat(say: Say) -> None:
    while True:
        threading.Event().wait(BEAT_S)
        say("beat", {})


if __name__ == "__main__":
    main()
