"""Rounds that alternate: every contender once, then every contender again, so that a slow minute hits all.

In: a session and its contenders. Out: seconds a sample, wall and CPU, one pair a round. Warm-up is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures import percentiles, ratio, spread
from .session import Contender, Session


@dataclass
class Timing:
    """What rounds of one contender took.

    Attributes:
        batch: prompts that ran together.
        count: samples a round.
        wall_s: seconds of each round.
        cpu_s: CPU seconds of the measured process in each round, all threads.
        call_s: seconds of each call, all rounds.
        last: the last reply, for its counts.
    """

    batch: int
    count: int
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    last: Mapping[str, Any] = field(default_factory=dict)

    def add(self, reply: Mapping[str, Any]) -> None:
        """One more round."""
        self.wall_s.append(reply["wall_s"])
        self.cpu_s.append(reply["cpu_s"])
        self.call_s += reply["call_s"]
        self.last = reply

    def figures(self) -> dict[str, Any]:
        """Samples a minute, CPU ms a sample, prompt tokens, with the raw seconds."""
        counts = self.last.get("counts", {})
        real, padded = self.last.get("prompt_real", 0), self.last.get("prompt_padded", 0)
        return {
            "batch": self.batch,
            "samples": self.count,
            "repeats": len(self.wall_s),
            "samples_per_min": spread([60 * self.count / s for s in self.wall_s]),
            "samples_per_cpu_min": spread([60 * self.count / s for s in self.cpu_s]),
            "cpu_ms_per_sample": 1000 * spread(self.cpu_s)["median"] / self.count,
            "processors_used": spread([c / w for c, w in zip(self.cpu_s, self.wall_s, strict=True)])["median"],
            "prompt_tokens": {
                "real": real / self.count or None,
                "padded": padded / self.count or None,
                "padded_share": 1 - real / padded if padded else None,
            },
            "new_tokens": sum(self.last.get("new", [])) / self.count or None,
            "counts": counts or None,
            "raw": {"wall_s": self.wall_s, "cpu_s": self.cpu_s},
        }

    def latency_ms(self) -> dict[str, float | None]:
        """Percentiles of one call."""
        return {name: None if s is None else 1000 * s for name, s in percentiles(self.call_s).items()}


def alternate(
    session: Session,
    contenders: Sequence[Contender],
    plan: Callable[[Contender], tuple[int, int]],
    rounds: int,
    new_tokens: int,
    done: Callable[[int], None] = lambda count: None,
    warm: bool = False,
    **more: Any,
) -> dict[Contender, Timing]:
    """Warm every contender up with one batch, unless it is warm, then time ``rounds`` rounds of all.

    Args:
        session: open and prepared.
        contenders: in the order of a round.
        plan: contender -> (samples a round, batch).
        rounds: timed ones.
        new_tokens: of every answer.
        done: hears 1 after every run.
        warm: all of them have run before.
        more: further fields of the request.
    """
    found = {who: Timing(batch, count) for who in contenders for count, batch in [plan(who)]}
    for number in range(1 if warm else 0, rounds + 1):
        for who, timing in found.items():
            count = timing.count if number else min(timing.count, timing.batch)
            reply = session.run(who, count, timing.batch, new_tokens, **more)
            if reply is not None and number:
                timing.add(reply)
            done(1)
    return {who: timing for who, timing in found.items() if len(timing.wall_s) == rounds}


def times_faster(fast: Timing, slow: Timing) -> dict[str, dict[str, float]]:
    """How many times faster ``fast`` is a sample, by wall clock and by CPU time, with intervals."""
    return {
        clock: ratio(
            [s / slow.count for s in getattr(slow, clock)],
            [s / fast.count for s in getattr(fast, clock)],
        )
        for clock in ("wall_s", "cpu_s")
    }
