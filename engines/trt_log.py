"""What TensorRT says while it works: collected, not printed.

Its libraries write to a logger that we hand in. Errors and warnings are kept for error messages and for
``--debug``; what every machine without a GPU says at every call is left out.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from .trt_api import TensorRt

HARMLESS: Final = (
    # Parsing and building ahead of time touch the CUDA runtime although they need no GPU.
    "CUDA driver version is insufficient",
    "no CUDA-capable device",
    "Unable to determine GPU memory usage",
    "CUDA initialization failure",
    # Our int64 inputs are meant.
    "Int64 binding",
)
"""Parts of messages that say nothing about the graph; a missing driver is reported by who needs one."""

WORST: Final = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2}


class Log(Protocol):
    """What ``make_log`` returns; TensorRT takes it as its logger."""

    lines: list[tuple[str, str]]

    def errors(self) -> list[str]:
        """Messages of severity error and above, without the harmless ones."""
        ...

    def warnings(self) -> list[str]:
        """Warnings, without the harmless ones."""
        ...

    def everything(self) -> str:
        """Errors and warnings with the harmless ones, as one text."""
        ...


def make_log(trt: TensorRt) -> Log:
    """A logger object for one TensorRT module.

    Its class derives from that module's ``ILogger``, so it is made here, per module.
    """

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            # Called from TensorRT's threads: must not raise.
            if severity.name in WORST:
                self.lines.append((severity.name, msg))

        def errors(self) -> list[str]:
            return [m for s, m in self.lines if s != "WARNING" and not harmless(m)]

        def warnings(self) -> list[str]:
            return [m for s, m in self.lines if s == "WARNING" and not harmless(m)]

        def everything(self) -> str:
            return "\n".join(f"{s} {m}" for s, m in self.lines)

    log: Log = Collector()
    return log


def harmless(message: str) -> bool:
    """True for what a machine without a GPU says about itself."""
    return any(part in message for part in HARMLESS)
