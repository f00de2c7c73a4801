"""Launches and plans for tests: the toy engine as ourselves, a stub as a peer."""

from __future__ import annotations

import sys
from pathlib import Path

from latentwire.benchmarks.inputs import Inputs, Sample
from latentwire.benchmarks.launches import Launch, own_launch
from latentwire.benchmarks.plan import Plan

STUB = Path(__file__).with_name("stub_peer.py")


def stub(mode: str = "good") -> Launch:
    """A peer that counts upwards from the last token of a prompt, or misbehaves in one way."""
    return Launch(f"stub {mode}", (sys.executable, str(STUB), mode), None, {"threads": 1}, weights="none")


def short_inputs() -> Inputs:
    rows = range(1, 5)
    samples = tuple(Sample(f"The {i}. bridge was opened in 19{i}0.", f"When was it {i}?", (f"19{i}0",)) for i in rows)
    return Inputs(samples, "0" * 64, "short")


def toy_plan(bundle: Path, *peers: Launch) -> Plan:
    own = own_launch(bundle, 1)
    sizes = {"samples": 4, "rounds": 2, "batches": (1, 4), "new_tokens": 3, "starts": 1, "requests": 4}
    return Plan([own, *peers], short_inputs(), **sizes)  # type: ignore[arg-type]
