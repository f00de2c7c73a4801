"""TensorRT's progress while it compiles, and the way to stop it.

Knows nothing of graphs: phases and steps in, one progress bar out.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ..core.console import Progress
from ..engines.trt_api import TensorRt

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Signals that came while TensorRT computed, in order."""

    came: list[int] = field(default_factory=list)


@contextmanager
def deferred_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM wait until the block has ended; what handled them before gets them then.

    Ignored ones (``nohup``, shells' background jobs) stay ignored. Python runs signal handlers inside our callbacks,
    and TensorRT swallows what they raise.
    """
    stop, before = Stop(), {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda n, _: stop.came.append(n))
    except ValueError:  # not the main thread: signals do not arrive here
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for came in stop.came:
        signal.raise_signal(came)


def make_monitor(trt: TensorRt, progress: Progress, stop: Stop) -> Any:
    """TensorRT's phases as steps of one progress bar; the build ends early once a signal came."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps += num_steps
            progress.total(self.steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.advance(1)
            return not stop.came

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
