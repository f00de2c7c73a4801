"""Stop within seconds even where a signal must wait for a long call of a library to end.

Python runs signal handlers between its own instructions only, and a batch may compute for longer than anybody wants
to wait. A thread hears of the signal at once; if the process has not come to its end in time, it ends it. That is
safe at any moment: the job goes on from its last commit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

GRACE_S: Final = 3.0
"""Seconds for an orderly end, which removes temporary files and tells workers."""


@contextmanager
def prompt_stop(grace_s: float = GRACE_S) -> Iterator[None]:
    """For the block, SIGTERM and SIGINT end the process after ``grace_s`` seconds at the latest (143, 130).

    Does nothing outside the main thread, where signals are somebody else's business.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    over = threading.Event()
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(hear, over, grace_s), name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(tell)
        thread.join()
        os.close(hear)


def _watch(hear: int, over: threading.Event, grace_s: float) -> None:
    while number := os.read(hear, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT) and not over.wait(grace_s):
            sys.stderr.write(f"stopped in the middle of a batch by {signal.Signals(number[0]).name}\n")
            sys.stderr.flush()
            os._exit(128 + number[0])
