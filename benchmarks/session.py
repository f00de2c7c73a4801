"""All measured processes of one report: opened, prepared with the same samples, asked, checked.

In: launches and samples. Out: checked replies. A process that fails drops out with its reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from ..core.console import message
from .children import Child, ChildFault
from .inputs import Sample
from .launches import Launch

SILENT: Final = ("W2", "W2-model")
"""Workloads that generate nothing."""


@dataclass(frozen=True)
class Contender:
    """One process with one workload: a row of a table."""

    launch: Launch
    workload: str

    @property
    def name(self) -> str:
        """``latentwire fp32: W1``."""
        return f"{self.launch.name}: {self.workload}"


@dataclass
class Session:
    """Processes by launch name.

    Attributes:
        launches: all that were asked for, runnable or not.
        latents: M; None: each bundle's own number.
        codec: of frames.
        facts: what each process said when it opened, with seconds of opening.
        failed: launch or contender name -> reason.
    """

    launches: Sequence[Launch]
    latents: int | None = None
    codec: str = "i8"
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    _children: dict[str, Child] = field(default_factory=dict)

    def __enter__(self) -> Self:
        for launch in self.launches:
            if launch.reason:
                self.failed[launch.name] = launch.reason
                continue
            try:
                child = Child(launch.name, launch.command, launch.cwd)
                self._children[launch.name] = child
                reply = child.ask("open", **launch.options)
            except ChildFault as e:
                self.fail(launch.name, e)
                continue
            self.facts[launch.name] = {**reply["facts"], "open_s": reply["wall_s"], "weights": launch.weights}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.close()

    def alive(self, launch: Launch) -> bool:
        """Whether this process can still be asked."""
        return launch.name in self.facts and launch.name not in self.failed

    def contenders(self, workloads: Sequence[str]) -> list[Contender]:
        """Living processes with those of ``workloads`` that they take."""
        living = [launch for launch in self.launches if self.alive(launch)]
        return [Contender(launch, w) for w in workloads for launch in living if w in launch.workloads]

    def prepare(self, samples: Sequence[Sample], compress: bool = True) -> None:
        """Give all processes the same samples. Peers get the token prompts that the first own process made."""
        given = [{"text": s.text, "question": s.question} for s in samples]
        prompts: dict[str, list[list[int]]] | None = None
        for launch in sorted(self.launches, key=lambda x: not x.own):
            if not self.alive(launch):
                continue
            try:
                child = self._children[launch.name]
                if launch.own:
                    own = {"samples": given, "latents": self.latents, "codec": self.codec, "compress": compress}
                    found = child.ask("prepare", **own)
                    self.prepared[launch.name] = found
                    prompts = prompts or peer_prompts(found, self.latents or self.facts[launch.name]["latents"])
                elif prompts:
                    child.ask("prepare", prompts=prompts)
            except ChildFault as e:
                self.fail(launch.name, e)

    def run(self, who: Contender, count: int, batch: int, new_tokens: int, **more: Any) -> dict[str, Any] | None:
        """One timed piece of work; None if it failed, now or before.

        A process that made another number of tokens than it was asked for has failed: its time means nothing.
        """
        if not self.alive(who.launch) or who.name in self.failed:
            return None
        wanted = {"workload": who.workload, "first": 0, "count": count, "batch": batch, "new_tokens": new_tokens}
        try:
            reply = self._children[who.launch.name].ask("run", **wanted, **more)
            check_tokens(who, reply, count, new_tokens, exact=not more.get("until_stop"))
        except ChildFault as e:
            self.fail(who.name, e)
            return None
        return reply

    def ask(self, launch: Launch, op: str, **fields: Any) -> dict[str, Any] | None:
        """Anything else of a living process; None if it failed."""
        if not self.alive(launch):
            return None
        try:
            return self._children[launch.name].ask(op, **fields)
        except ChildFault as e:
            self.fail(launch.name, e)
            return None

    def fail(self, name: str, error: ChildFault) -> None:
        """Note a failure; it becomes a row."""
        self.failed[name] = str(error)
        message(f"left out: {error}")


def peer_prompts(prepared: dict[str, Any], latents: int) -> dict[str, list[list[int]]]:
    """Token prompts for peers: with the whole text, and with its first ``latents`` tokens."""
    pairs = list(zip(prepared["contexts"], prepared["questions"], strict=True))
    bos = prepared["bos"]
    return {
        "W1-text": [bos + context + question for context, question in pairs],
        "W1-same": [bos + context[:latents] + question for context, question in pairs],
    }


def check_tokens(who: Contender, reply: dict[str, Any], count: int, new_tokens: int, exact: bool) -> None:
    """Raise ChildFault unless every sample was answered with as many tokens as were asked for."""
    if who.workload in SILENT:
        return
    new = reply["new"]
    wrong = [n for n in new if not (n == new_tokens if exact else 1 <= n <= new_tokens)]
    if len(new) != count or wrong:
        got = f"{len(new)} answers" if len(new) != count else f"{wrong[0]} tokens"
        raise ChildFault(f"{who.name}: asked for {count} answers of {new_tokens} tokens, got {got}")
