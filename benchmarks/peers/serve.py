"""The protocol that every measured process speaks: one JSON object a line, requests in, replies out.

    {"op": "open", ...options}                                -> {"ok": true, "facts": {...}, "wall_s": ...}
    {"op": "prepare", "prompts": {"W1-text": [[1, 7, ...], ...], ...}}    (our own process is given samples)
    {"op": "run", "workload": "W1-text", "first": 0, "count": 32, "batch": 8, "new_tokens": 16}
                                                              -> {"ok": true, "wall_s", "cpu_s", "new": [16, ...], ...}
    {"op": "stats"}                                           -> {"ok": true, "peak_rss_bytes": ...}

A fault is a reply, ``{"ok": false, "error": ...}``, and the process goes on. It ends when its input does. Runs
in foreign environments: the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Handler = Callable[[Mapping[str, Any]], dict[str, Any]]
"""One operation: the request's fields to the reply's."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the input ends. Whatever libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    known = {"stats": lambda request: {"peak_rss_bytes": peak_rss()}, **handlers}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"ok": True, **known[request["op"]](request)}
        except Exception as e:  # noqa: BLE001  a peer's fault is a row of the table, whatever its type
            reply = {"ok": False, "error": f"{type(e).__name__}: {e}"[:800]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


class Stopwatch:
    """Wall and CPU seconds of this process, all its threads, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``wall_s`` and ``cpu_s``."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def peak_rss() -> int:
    """Most bytes of memory that this process has held since it started."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: that one is handed down by the process that started this one.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def batches(prompts: list[list[int]], batch: int) -> list[list[int]]:
    """Indices in batches of neighbours in length, longest first: what every contender does."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[at : at + batch] for at in range(0, len(order), batch)]


@dataclass(frozen=True)
class Made:
    """Answers to one batch of prompts, in their order.

    Attributes:
        new: tokens generated for each.
        tokens: their ids; None where the library does not say.
        texts: the answers as text; None where the ids are there.
    """

    new: list[int]
    tokens: list[list[int]] | None = None
    texts: list[str] | None = None


def made(tokens: list[list[int]]) -> Made:
    """Answers whose ids are known."""
    return Made(list(map(len, tokens)), tokens)


class Prompts:
    """Base of a peer: it holds token prompts and answers them in batches.

    ``answer(prompts, new_tokens)`` is what a peer adds: exactly ``new_tokens`` tokens for each prompt, greedily,
    whether an end token comes or not.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, list[list[int]]] = {}

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model; returns facts about what will compute."""
        raise NotImplementedError

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        """Answer one batch."""
        raise NotImplementedError

    def padded(self, lengths: list[int]) -> int:
        """Positions that a batch of prompts costs; a peer without padding says the sum."""
        return max(lengths) * len(lengths)

    def serve(self) -> None:
        """Run as a process."""
        serve({"open": self._open, "prepare": self._prepare, "run": self._run})

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        watch = Stopwatch()
        facts = self.open(request)
        return {"facts": facts, **watch.read()}

    def _prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = request["prompts"].items()
        self._prompts = {name: [list(map(int, prompt)) for prompt in prompts] for name, prompts in found}
        return {}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        first, new_tokens = int(request["first"]), int(request["new_tokens"])
        prompts = self._prompts[request["workload"]]
        chosen = [prompts[(first + i) % len(prompts)] for i in range(int(request["count"]))]
        kept: dict[str, list[Any]] = {"new": [None] * len(chosen)}
        seconds, padded = [], 0
        watch = Stopwatch()
        for batch in batches(chosen, int(request["batch"])):
            own = Stopwatch()
            found = self.answer([chosen[i] for i in batch], new_tokens)
            seconds.append(own.read()["wall_s"])
            padded += self.padded([len(chosen[i]) for i in batch])
            for name, values in (("new", found.new), ("tokens", found.tokens), ("texts", found.texts)):
                for index, value in zip(batch, values or [], strict=False):
                    kept.setdefault(name, [None] * len(chosen))[index] = value
        taken = watch.read()
        real = sum(map(len, chosen))
        return {**taken, **kept, "call_s": seconds, "prompt_real": real, "prompt_padded": padded}
