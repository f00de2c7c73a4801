"""Which engines of this machine can run a bundle's decoder, and for the others why they are not checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..core.errors import InputError
from ..engines.base import Engine
from ..engines.bundle import Bundle
from ..engines.ort import OrtCpuEngine
from ..engines.torch_ref import TorchRefEngine
from . import reference
from .drive import SLACK
from .findings import Finding
from .gate_same import STEPS
from .precision import precision
from .probe import Probe, ProbeEngine, TorchProbe
from .recorded import Recorded


@dataclass(frozen=True)
class Backend:
    """One way to run the decoder.

    Attributes:
        name: as engines call themselves.
        open: the engine as it is used.
        watch: the same with every layer's states in reach; None where that cannot be had.
        batch: most rows of a call; 0: any.
        length: most positions of a row, answer included; 0: any.
    """

    name: str
    open: Callable[[], Engine]
    watch: Callable[[], Probe] | None
    batch: int = 0
    length: int = 0


def backends(
    bundle: Bundle, threads: int | None, only: Sequence[str] | None = None
) -> tuple[list[Backend], list[Finding]]:
    """Those that are here, and for each of the others a finding that says why it is not run.

    Raises:
        InputError: 2111 a name in ``only`` that no backend has.
    """
    if unknown := set(only or ()) - set(FINDERS):
        expected = f"expected some of {', '.join(FINDERS)}, got {', '.join(sorted(unknown))}"
        raise InputError(2111, "unknown backend", where="option backends", expected=expected)
    there, absent = [], []
    for name, find in FINDERS.items():
        if only is not None and name not in only:
            continue
        found = find(bundle, threads)
        if isinstance(found, Backend):
            there.append(found)
        else:
            absent.append(Finding("all but weights", name, "not run", detail=found))
    return there, absent


def _ort_cpu(bundle: Bundle, threads: int | None) -> Backend | str:
    if not precision(bundle.manifest.precision).on_cpu:
        return f"ONNX Runtime has no CPU kernels for {bundle.manifest.precision}"
    return Backend(
        "ort-cpu",
        lambda: OrtCpuEngine(bundle, threads=threads),
        lambda: ProbeEngine(bundle, threads=threads),
        length=bundle.manifest.capacity,
    )


def _torch_ref(bundle: Bundle, threads: int | None) -> Backend | str:
    m = bundle.manifest
    if not reference.available():
        return "torch is not installed"
    if precision(m.precision).matmul != "plain" or m.flavour == "gqa":
        return f"knows no operators of {m.precision} in flavour {m.flavour}"
    return Backend(
        "torch-ref",
        lambda: TorchRefEngine(bundle, threads=threads),
        lambda: TorchProbe(bundle, threads=threads),
        length=m.capacity,
    )


FINDERS: dict[str, Callable[[Bundle, int | None], Backend | str]] = {
    "ort-cpu": _ort_cpu,
    "torch-ref": _torch_ref,
}
"""Name -> how to find it: the backend, or why it is not here."""


def fitting(recorded: Recorded, backend: Backend) -> Recorded:
    """The prompts that fit the backend with their answers; all of them where it has no limit."""
    if not backend.length:
        return recorded
    room = backend.length - recorded.tokens.shape[1] - STEPS - SLACK
    keep = [i for i, p in enumerate(recorded.prompts) if len(p) <= room]
    at = {p: n for n, p in enumerate(keep)}
    rows = [r for r, (p, _) in enumerate(recorded.probes.tolist()) if p in at]
    probes = recorded.probes[rows].copy()
    probes[:, 0] = [at[p] for p in probes[:, 0].tolist()]
    return replace(
        recorded,
        prompts=[recorded.prompts[i] for i in keep],
        tokens=recorded.tokens[keep],
        margins=recorded.margins[keep],
        logits=recorded.logits[keep],
        probes=probes,
        hidden=recorded.hidden[:, rows],
    )
