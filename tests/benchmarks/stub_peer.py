"""A process that speaks the peers' protocol without a model. Its first argument says how it misbehaves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from latentwire.benchmarks.peers.serve import Made, Prompts, made


class Stub(Prompts):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        print("a library that talks on stdout")
        if self._mode == "no model":
            raise FileNotFoundError("no such model")
        return {"versions": {}, "compute": "none", "weights": "none", "how": "stub"}

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        if self._mode == "dies":
            sys.stderr.write("last words\n")
            sys.stderr.flush()
            os._exit(9)
        if self._mode == "hangs":
            time.sleep(60)
        new_tokens -= self._mode == "short"
        return made([[prompt[-1] + i for i in range(1, new_tokens + 1)] for prompt in prompts])


if __name__ == "__main__":
    Stub(sys.argv[1]).serve()
