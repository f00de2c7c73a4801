"""What is to be measured: sizes, contenders, inputs, checked once.

In: options of the command line. Out: a plan, and the facts every report carries about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..core.errors import InputError
from . import machine
from .inputs import Inputs
from .launches import Launch

BATCHES: Final = (8, 32)
QUICK: Final[Mapping[str, Any]] = {"samples": 4, "rounds": 2, "batches": (1, 4), "starts": 1, "requests": 4}
QUICK_NOTE: Final = "QUICK: a rehearsal with tiny sizes; its figures mean nothing."


@dataclass(frozen=True)
class Plan:
    """Sizes and contenders.

    Attributes:
        launches: at least one of our own, first.
        inputs: texts and questions.
        samples: of a round.
        rounds: timed rounds.
        batches: batch sizes to try.
        new_tokens: of every answer.
        latents: M; None: the bundle's.
        codec: of frames.
        starts: cold processes.
        requests: single requests of a latency figure.
        seed: of resampling.
        quick: a rehearsal.
    """

    launches: Sequence[Launch]
    inputs: Inputs
    samples: int = 32
    rounds: int = 3
    batches: Sequence[int] = BATCHES
    new_tokens: int = 16
    latents: int | None = None
    codec: str = "i8"
    starts: int = 3
    requests: int = 8
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        if not self.launches or not self.launches[0].own:
            raise InputError(2111, "nothing to measure", expected="expected a bundle of our own first")
        for name in ("samples", "rounds", "new_tokens", "starts", "requests"):
            within(name, getattr(self, name), 4096 if name == "new_tokens" else 1_000_000)
        if not self.batches:
            raise InputError(2111, "no batch size to try", where="option batch")
        for batch in self.batches:
            within("batch", batch, 4096)

    @property
    def own(self) -> Launch:
        """Our runtime on the first bundle: what others are compared with."""
        return self.launches[0]

    def hurried(self) -> Plan:
        """The same with tiny sizes."""
        return replace(self, quick=True, **QUICK)

    def facts(self) -> dict[str, Any]:
        """For a report, before anything runs."""
        sizes = {name: getattr(self, name) for name in ("samples", "rounds", "new_tokens", "latents", "codec", "quick")}
        return {
            "machine": machine.machine(),
            **machine.run_facts(self.seed),
            "sizes": {**sizes, "batches": list(self.batches), "threads": self.own.options.get("threads")},
            "inputs": self.inputs.facts(self.samples),
        }

    def remarks(self) -> list[str]:
        """What stands under every table."""
        return [QUICK_NOTE] if self.quick else []


def within(name: str, value: int, most: int) -> None:
    """Raise InputError 2111 unless 1 <= value <= most."""
    if not 1 <= value <= most:
        expected = f"expected 1..{most}, got {value}"
        raise InputError(2111, "option value out of range", where=f"option {name}", expected=expected)
