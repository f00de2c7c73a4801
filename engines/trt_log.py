"""What TensorRT says while it works: collected, not printed.

Its libraries write to a logger that we hand in. They keep the first one for the life of the process, so there
is one for each module. Errors and warnings are kept for error messages and for ``--debug``; what every machine
without a GPU says at every call is left out.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

from .trt_api import TensorRt

HARMLESS: Final = (
    # Parsing and building ahead of time touch the CUDA runtime although they need no GPU.
    "CUDA driver version is insufficient",
    "no CUDA-capable device",
    "Unable to determine GPU memory usage",
    # Our int64 inputs are meant.
    "Int64 binding",
    # We hand in the same logger every time; a host program may have handed in its own before.
    "differs from one already registered",
)
"""Parts of messages that say nothing about the graph; a missing driver is reported by who needs one."""

KEPT: Final = ("INTERNAL_ERROR", "ERROR", "WARNING")
LONGEST: Final = 1000
"""Lines kept; the oldest go first."""


class Log(Protocol):
    """TensorRT's logger as this project sees it."""

    def start(self) -> None:
        """Forget earlier lines: a new piece of work begins."""
        ...

    def errors(self, *, harmless: bool = False) -> list[str]:
        """Messages of severity error and above since ``start``; ``harmless``: also those without meaning."""
        ...

    def warnings(self) -> list[str]:
        """Warnings since ``start`` that mean something."""
        ...


def shared_log(trt: TensorRt) -> Log:
    """The logger of one TensorRT module: the same object every time."""
    key = trt.__name__
    if key not in _LOGS:
        _LOGS[key] = _make(trt)
    return _LOGS[key]


_LOGS: Final[dict[str, Log]] = {}


def _make(trt: TensorRt) -> Log:
    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[tuple[str, str]] = deque(maxlen=LONGEST)

        def log(self, severity: Any, msg: str) -> None:
            # Called from TensorRT's threads: must not raise.
            if severity.name in KEPT:
                self.lines.append((severity.name, msg))

        def start(self) -> None:
            self.lines.clear()

        def errors(self, *, harmless: bool = False) -> list[str]:
            return [m for s, m in self.lines if s != "WARNING" and (harmless or not is_harmless(m))]

        def warnings(self) -> list[str]:
            return [m for s, m in self.lines if s == "WARNING" and not is_harmless(m)]

    log: Log = Collector()
    return log


def is_harmless(message: str) -> bool:
    """True for what says nothing about the graph."""
    return any(part in message for part in HARMLESS)
