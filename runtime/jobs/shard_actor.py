"""What runs shards on a node of a cluster: the same functions as in a worker process, as an object with methods.

Everything that goes in and out is one line of ``pipes``. Knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ...core.errors import EnvironmentFault
from .pipes import error_to_json, pack, unpack
from .poison import Work
from .task import VERSIONS
from .worker import open_spec, run_work


class ShardActor:
    """Made on the node; ``open`` first, then ``run`` one piece at a time. ``rows`` may be asked meanwhile."""

    def __init__(self) -> None:
        self._last = b""
        self._rows = 0

    def open(self, line: bytes) -> bytes:
        """Open the encoder: ``ready``, ``refused`` or ``broken``."""
        found = unpack(line)[1]
        try:
            _check_node(found)
            self._spec, self._encoder = open_spec(found, self._say)
        except EnvironmentFault as error:
            self._say("refused", error_to_json(error))
        except SystemExit:
            pass  # it said why
        return self._last

    def run(self, line: bytes) -> bytes:
        """Do one piece: ``done``, ``failed`` or ``broken``."""
        self._rows = 0
        with contextlib.suppress(SystemExit):  # it said why
            run_work(self._spec, Work.from_json(unpack(line)[1]), self._encoder, self._say)
        return self._last

    def rows(self) -> int:
        """Finished rows of the piece at work."""
        return self._rows

    def _say(self, kind: str, value: object) -> None:
        if kind == "rows" and isinstance(value, int):
            self._rows = value
        else:
            self._last = pack(kind, value)


def _check_node(found: dict[str, Any]) -> None:
    """The node has our version and sees our files."""
    ours, plan = found["versions"]["latentwire"], found["spec"]["plan"]
    if VERSIONS["latentwire"] != ours:
        expected = f"expected latentwire {ours}, got {VERSIONS['latentwire']}"
        fix = "install the same version on every node"
        raise EnvironmentFault(5013, "a node of the cluster has another version", expected=expected, fix=fix)
    if not Path(plan).exists():
        what = "a node of the cluster does not see the job's folder"
        fix = "put input, bundle and output on a file system that all nodes share, under the same path"
        raise EnvironmentFault(5013, what, where=found["spec"]["folder"], fix=fix)
