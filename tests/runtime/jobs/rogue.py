"""Encoders for worker processes: the stub, which a text can make die, hang or fail.

``die`` and ``exit`` in a text kill the process; ``once PATH`` does so where PATH does not exist yet, ``raise`` is a
mistake of ours, ``gpu`` a device that fails, ``disk`` a full disk, ``hang`` waits for ever, ``freeze`` stops the
process itself, ``slow`` takes a moment. FOLDER is made of the ``encoder`` field and may hold switches.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from latentwire.core.errors import EnvironmentFault, LatentWireError, RowError
from latentwire.runtime import message
from latentwire.runtime.compress import Compressed
from latentwire.runtime.jobs.task import JobSpec
from latentwire.runtime.options import CompressOptions


class RogueEncoder:
    """Sends the text itself, and does what the text says."""

    def compress_rows(
        self, texts: Sequence[str], options: CompressOptions, names: Sequence[str]
    ) -> list[Compressed | LatentWireError]:
        return [self._one(text) for text in texts]

    def describe(self) -> dict[str, str]:
        return {"engine": "stub"}

    def _one(self, text: str) -> Compressed | LatentWireError:
        first, _, rest = text.partition(" ")
        if first in ("die", "once") and not (first == "once" and Path(rest).exists()):
            if first == "once":
                Path(rest).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif first == "exit":
            os._exit(7)
        elif first == "raise":
            raise ZeroDivisionError("our own mistake")
        elif first == "gpu":
            raise EnvironmentFault(5001, "CUDA failed", where="cuda:0")
        elif first == "disk":
            raise EnvironmentFault(5004, "no space left to write", where="here", exit_code=74)
        elif first == "hang":
            time.sleep(3600)
        elif first == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif first == "slow":
            time.sleep(0.05)
        elif first == "print":
            print("a library that talks", "x" * 100_000, flush=True)
            os.write(1, b'{"done": {}}\n')
        if not text:
            return RowError(2005, "text is empty")
        return Compressed(message.from_text(text), len(text), len(text.encode()), False)


def open_encoder(spec: JobSpec) -> RogueEncoder:
    return RogueEncoder()


def refuse(spec: JobSpec) -> RogueEncoder:
    raise EnvironmentFault(5001, "no such device", where=f"--device {spec.machine.device}")


def break_down(spec: JobSpec) -> RogueEncoder:
    raise OSError("a library is missing")


def dawdle(spec: JobSpec) -> RogueEncoder:
    time.sleep(3600)
    return RogueEncoder()


def vanish(spec: JobSpec) -> RogueEncoder:
    os._exit(9)


def talk(spec: JobSpec) -> RogueEncoder:
    print(f"device {spec.machine.device} threads {spec.machine.threads}", file=sys.stderr, flush=True)
    return RogueEncoder()
