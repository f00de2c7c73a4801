"""Who takes part: our own runtime on each bundle, and the peers that are set up, each as a process to start.

In: bundles and names of peers. Out: launches, and reasons for those that cannot be. Starts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..engines.bundle import read_bundle
from ..models.catalogue import CATALOGUE
from . import peer_setup
from .peer_setup import Ready

OWN_WORKLOADS: Final = ("W1", "W1-text", "W3", "W2")
PEER_WORKLOADS: Final = ("W1-text", "W1-same")
"""Full text, and as many prompt tokens as W1 has positions: the text's first tokens in the latents' place."""
SLOTS: Final = 32
POSITIONS: Final = 640
"""Most sequences and positions that llama.cpp makes room for."""


@dataclass(frozen=True, eq=False)  # options are a dictionary: two launches are one only if they are the same object
class Launch:
    """One process.

    Attributes:
        name: in tables.
        command: to start it.
        cwd: where; None: here.
        options: of its ``open``.
        own: our own runtime; else a peer.
        workloads: what it is asked for.
        weights: what its weights are, in words.
        reason: why it cannot run; None: it can.
    """

    name: str
    command: tuple[str, ...]
    cwd: Path | None
    options: dict[str, Any] = field(default_factory=dict)
    own: bool = False
    workloads: tuple[str, ...] = PEER_WORKLOADS
    weights: str = ""
    reason: str | None = None


def own_launch(bundle: Path, threads: int, device: str = "cpu", backend: str = "auto", label: str = "") -> Launch:
    """Our runtime on one bundle. Raises BundleError as ``read_bundle``."""
    manifest = read_bundle(bundle, verify="size").manifest
    options = {"bundle": str(bundle.resolve()), "threads": threads, "device": device, "backend": backend}
    command = (sys.executable, "-m", "latentwire.benchmarks.own")
    name = label or f"latentwire {manifest.precision}"
    return Launch(name, command, None, options, True, OWN_WORKLOADS, weights_of(manifest.llm.name))


def own_launches(bundles: Sequence[Path], threads: int, device: str, backend: str) -> list[Launch]:
    """One for each bundle; two of one precision are told apart by their folders."""
    found = [own_launch(bundle, threads, device, backend) for bundle in bundles]
    names = [launch.name for launch in found]
    return [
        own_launch(bundle, threads, device, backend, f"{launch.name} ({bundle.name})")
        if names.count(launch.name) > 1
        else launch
        for bundle, launch in zip(bundles, found, strict=True)
    ]


def weights_of(llm: str) -> str:
    """``dequantised Q4_1`` for a model of the catalogue; ``as given`` for others."""
    if llm not in CATALOGUE:
        return "as given"
    return f"dequantised {CATALOGUE[llm].parts[0].member.rsplit('.', 2)[-2].rsplit('-', 1)[-1]}"


def peer_launches(names: Sequence[str], llm: str, threads: int) -> list[Launch]:
    """The processes of the named peers or rows of peers; one that is not set up comes with the reason.

    Raises:
        InputError: 2111 no such peer.
    """
    found: list[Launch] = []
    for name in names:
        peer, forms = peer_setup.chosen(name)
        ready = peer_setup.find(peer, llm)
        found += [_peer(form, ready, llm, threads) for form in forms]
    return found


def _peer(form: str, ready: Ready, llm: str, threads: int) -> Launch:
    if ready.reason or form not in ready.options:
        return Launch(form, (), None, reason=ready.reason or "not built: run scripts/bench-peers again")
    options = {**ready.options[form], "threads": threads}
    if "gguf" in options:
        options |= {"slots": SLOTS, "positions": POSITIONS}
    command = (str(ready.python), "-m", f"peers.{ready.module}")
    return Launch(form, command, Path(__file__).parent, options, weights=str(options.get("kind") or weights_of(llm)))
