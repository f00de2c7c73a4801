"""Gates between a bundle's decoder and a reference, on every backend of this machine: every export ends here.

    weights         every tensor, value by value                                          the file
    states          hidden states of whole prompts, layer by layer        the reference   where layers can be watched
    cached states   the same of one step from the cache                   the reference   where layers can be watched
    logits          after every prompt, in ragged batches                 the reference   every backend
    tokens          greedy, each fed by the one before                    the reference   every backend
    batch padding steps reuse refill cache                                itself          every backend, see gate_same
    prefix          where latents go into the cache                       itself          every backend, see gate_prefix
    ..., latents read    those of gate_same, where layers read latents    itself          every backend, see gate_cross

A gate passes or raises ``ParityError`` with the first tensor that departs. Nothing is only warned about; what cannot
be run here is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from ..core.console import message, track
from ..core.errors import LatentError
from ..engines.base import Engine
from ..engines.bundle import Bundle
from ..models.folder import ModelFolder
from .backends import Backend, fitting, room, running
from .findings import Finding, ParityError, departed
from .gate_cross import read_gates
from .gate_prefix import check_prefix, has_prefix
from .gate_reference import check_logits, check_states, check_tokens, replay
from .gate_same import GATES, Gate, Sample, sample
from .gate_weights import check_weights
from .limits import Limits, limits
from .lora import lora_of
from .precision import precision
from .probe import Probe
from .recorded import Recorded
from .yardstick import Reference, run_reference

Verify = Literal["full", "weights", "none"]
"""How much is run: every gate, the weights alone (no model is run), nothing."""


@dataclass(frozen=True)
class Report:
    """What the gates found.

    Attributes:
        verify: how much was asked for.
        source: who the reference is; empty where none was needed.
        findings: in order; the failed ones too where the caller wanted the whole table.
    """

    verify: Verify
    source: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> list[Finding]:
        """Findings beyond their limit."""
        return [f for f in self.findings if f.verdict == "failed"]

    def without(self, backend: str) -> tuple[Finding, ...]:
        """Findings of the others."""
        return tuple(f for f in self.findings if f.backend != backend)

    def to_json(self) -> dict[str, Any]:
        """For the manifest and ``--json``."""
        source = {"source": self.source} if self.source else {}
        return {"verify": self.verify, **source, "gates": [f.to_json() for f in self.findings]}


def verify(
    bundle: Bundle,
    llm: ModelFolder,
    choice: Reference | None,
    how: Verify = "full",
    *,
    threads: int | None = None,
    only: Sequence[str] | None = None,
    stop: bool = True,
    quick: bool = True,
) -> Report:
    """Run the gates.

    Args:
        bundle: what is judged.
        llm: the model it was made of.
        choice: the yardstick; None is enough unless ``how`` is ``full``.
        how: see ``Verify``.
        threads: computing threads; None: all.
        only: backends to use; None: every one that is there.
        stop: raise the first failure; otherwise it is listed and the next gate runs.
        quick: leave out backends that are slow, unless nothing else runs the bundle or they are named in ``only``.

    Raises:
        ParityError: 4010, naming the first tensor that departs.
        BundleError: 4011 no backend of this machine runs the bundle.
    """
    if how == "none":
        return Report(how, "", ())
    findings = [_judged("weights", "file", lambda: check_weights(bundle, llm), stop)]
    if how == "weights":
        return Report(how, "", tuple(findings))
    if choice is None:
        raise ValueError("a full check needs a yardstick")
    there, absent = running(bundle, threads, only, quick=quick and only is None)
    recorded = run_reference(choice, llm, bundle.manifest.llm.bos, room(there), lora_of(bundle))
    message(f"parity: {len(recorded.prompts)} prompts against {recorded.source} on {', '.join(b.name for b in there)}")
    for backend in there:
        findings += check_backend(backend, bundle, recorded, stop=stop)
    return Report(how, recorded.source, (*findings, *absent))


def check_backend(backend: Backend, bundle: Bundle, recorded: Recorded, *, stop: bool = True) -> list[Finding]:
    """Every gate but the weights on one backend, in order.

    Raises:
        ParityError: 4010 with ``stop``; else failures are among the findings.
    """
    bound = limits(precision(bundle.manifest.precision))
    recorded = fitting(recorded, backend)
    few = sample(recorded.prompts, bound.same)
    with ExitStack() as stack:
        engine = stack.enter_context(closing(backend.open()))
        probe = stack.enter_context(closing(backend.watch())) if backend.watch else None
        replayed = cache(lambda: replay(engine, recorded))
        gates: dict[str, Callable[[], Finding]] = {
            "states": lambda: _states(backend.name, probe, recorded, bound, cached=False),
            "cached states": lambda: _states(backend.name, probe, recorded, bound, cached=True),
            "logits": lambda: check_logits(backend.name, recorded, bound, replayed()),
            "tokens": lambda: check_tokens(backend.name, recorded, bound, replayed()),
        }
        same = GATES | ({"prefix": check_prefix} if has_prefix(bundle) else {}) | read_gates(bundle)
        for name, gate in same.items():
            gates[name] = partial(_named, gate, engine, probe, few)
        with track(f"parity: {backend.name}", len(gates), "gates") as progress:
            found = []
            for name, check in gates.items():
                found.append(_judged(name, backend.name, check, stop))
                progress.advance()
    return found


def _states(name: str, probe: Probe | None, recorded: Recorded, bound: Limits, *, cached: bool) -> Finding:
    if probe is None:
        gate = "cached states" if cached else "states"
        return Finding(gate, name, "not run", detail="the layers of this backend cannot be watched")
    return check_states(probe, recorded, bound, cached=cached)


def _named(gate: Gate, engine: Engine, probe: Probe | None, few: Sample) -> Finding:
    """A gate on the engine as it ships; where it fails, once more with the layers watched, to name the first."""
    try:
        return gate(engine, few)
    except ParityError:
        if probe is not None:
            gate(probe, few)
        raise


def _judged(gate: str, backend: str, check: Callable[[], Finding], stop: bool) -> Finding:
    try:
        return check()
    except LatentError as e:  # NaN, or a call that the engine refuses
        error = departed(gate, backend, e.where or "buffers", None, None, "", f"{e.label} {e.what}, {e.expected}")
        if stop:
            raise error from e
        return error.finding
    except ParityError as e:
        if stop:
            raise
        return e.finding
