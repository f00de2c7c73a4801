"""What a worker process and its parent say to each other: one JSON object a line.

To the worker: ``{"open": SPEC, "encoder": "module:function"}`` once, then ``{"work": WORK}``, one at a time. The end
of the pipe means that the parent is gone.
From the worker: ``{"ready": {}}`` or ``{"refused": ERROR}``; then for each work ``{"rows": n}`` as they are
finished and at last ``{"done": FACTS}``, ``{"failed": ERROR}`` (trying again would not help) or ``{"broken": "why"}``
(this process should not go on); and ``{"beat": {}}`` every few seconds.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from ...core import errors
from ...core.errors import LatentWireError
from .shard import Encoder
from .task import JobSpec

BEAT_S: Final = 2.0
LONGEST: Final = 16 << 20
"""Bytes of a line; a commit record is far below."""

_CLASSES: Final = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, LatentWireError)
}


def pack(kind: str, value: object) -> bytes:
    """One line."""
    return json.dumps({kind: value}).encode() + b"\n"


def unpack(line: bytes) -> tuple[str, Any]:
    """Kind and value of a line. Raises ValueError for anything else."""
    found = json.loads(line)
    if not isinstance(found, dict) or len(found) != 1:
        raise ValueError("not one message")
    return next(iter(found.items()))


class Lines:
    """Bytes as they come from a pipe, cut into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes. Raises ValueError where one is endless."""
        self._rest += data
        *whole, rest = self._rest.split(b"\n")
        self._rest = rest
        if len(rest) > LONGEST:
            raise ValueError("endless line")
        return (bytes(line) for line in whole)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def error_to_json(error: LatentWireError) -> dict[str, Any]:
    """For a pipe; ``error_from_json`` reads it."""
    names = ("code", "what", "where", "expected", "fix", "exit_code")
    return {"class": type(error).__name__, **{name: getattr(error, name) for name in names}}


def error_from_json(found: dict[str, Any]) -> LatentWireError:
    """The error that ``error_to_json`` described."""
    given = dict(found)
    kind = _CLASSES.get(given.pop("class"), LatentWireError)
    return kind(given.pop("code"), given.pop("what"), **given)


def encoder_opener(name: str) -> Callable[[JobSpec], Encoder]:
    """The function ``module:function`` that opens an encoder."""
    module, _, function = name.partition(":")
    found: Callable[[JobSpec], Encoder] = getattr(importlib.import_module(module), function)
    return found
