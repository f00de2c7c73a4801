"""Which engines of this machine can run a bundle's decoder, and for the others why they are not checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..core.errors import BundleError, EnvironmentFault, InputError
from ..engines.base import Engine
from ..engines.bundle import Bundle
from ..engines.ort import OrtCpuEngine
from ..engines.ort_cuda import OrtCudaEngine, place_of
from ..engines.torch_ref import TorchRefEngine
from ..engines.trt import TrtEngine
from ..engines.trt_memory import open_device
from ..engines.trt_module import load
from . import reference
from .drive import SLACK
from .findings import Finding
from .gate_reference import BATCH
from .gate_same import PAD, STEPS
from .precision import precision
from .probe import Probe, ProbeEngine, TorchProbe
from .recorded import Recorded

LATER: Final = "slow; latentwire inspect BUNDLE --parity runs it"


@dataclass(frozen=True)
class Backend:
    """One way to run the decoder.

    Attributes:
        name: as engines call themselves.
        open: the engine as it is used.
        watch: the same with every layer's states in reach; None where that cannot be had.
        length: most positions of a row, answer included; 0: any.
        slow: much slower than the others; an export uses it only where no other runs the bundle.
    """

    name: str
    open: Callable[[], Engine]
    watch: Callable[[], Probe] | None
    length: int = 0
    slow: bool = False


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


def running(
    bundle: Bundle, threads: int | None, only: Sequence[str] | None = None, *, quick: bool = False
) -> tuple[list[Backend], list[Finding]]:
    """As ``backends``, of which there is at least one; ``quick``: no slow one beside others.

    Raises:
        BundleError: 4011 no backend of this machine runs the bundle.
        InputError: 2111 as ``backends``.
    """
    there, absent = backends(bundle, threads, only)
    fast = [b for b in there if not b.slow]
    if quick and fast:
        absent += [Finding("all but weights", b.name, "not run", detail=LATER) for b in there if b.slow]
        return fast, absent
    if there:
        return there, absent
    raise BundleError(
        4011,
        "nothing here runs this bundle, so that it cannot be checked",
        where=str(bundle.path),
        expected="; ".join(f"{f.backend}: {f.detail}" for f in absent),
        fix="check it on a machine with the device, or export with --verify weights",
    )


def _ort_cpu(bundle: Bundle, threads: int | None) -> Backend | str:
    if not precision(bundle.manifest.precision).on_cpu:
        return f"ONNX Runtime has no CPU kernels for {bundle.manifest.precision}"
    return Backend(
        "ort-cpu",
        lambda: OrtCpuEngine(bundle, threads=threads),
        lambda: ProbeEngine(bundle, threads=threads),
        length=bundle.manifest.capacity,
    )


def _ort_cuda(bundle: Bundle, threads: int | None) -> Backend | str:
    if "cross" in bundle.manifest.graphs:
        return "gives a decoder nothing but the prompt and its cache"
    try:
        place_of("cuda")
    except EnvironmentFault as e:
        return e.what
    return Backend("ort-cuda", lambda: OrtCudaEngine(bundle, threads=threads), None, length=bundle.manifest.capacity)


def _trt(bundle: Bundle, threads: int | None) -> Backend | str:
    plan = bundle.manifest.plans.get("decoder")
    if plan is None:
        return "bundle has no plans"
    if plan.batch < BATCH:
        return f"its plans take {plan.batch} rows, the gates use up to {BATCH}"
    try:
        open_device()
        load(plan.package)
    except EnvironmentFault as e:
        return e.what
    # Every logit is looked at: a gate compares them.
    return Backend(
        "trt",
        lambda: TrtEngine(bundle, threads=threads, check_every=1),
        None,
        length=min(bundle.manifest.capacity, plan.length),
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
        slow=True,
    )


FINDERS: dict[str, Callable[[Bundle, int | None], Backend | str]] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "trt": _trt,
    "torch-ref": _torch_ref,
}
"""Name -> how to find it: the backend, or why it is not here."""


def room(there: Sequence[Backend]) -> int:
    """Positions that a prompt and its answer have on every backend; 0: any number."""
    return max(0, min((b.length - PAD - STEPS - SLACK for b in there if b.length), default=0))


def fitting(recorded: Recorded, backend: Backend) -> Recorded:
    """The prompts that fit the backend with their answers; all of them where it has no limit.

    Raises:
        BundleError: 4011 none fits.
    """
    if not backend.length:
        return recorded
    longest = room([backend]) - recorded.tokens.shape[1]
    keep = [i for i, p in enumerate(recorded.prompts) if len(p) <= longest]
    if not keep:
        shortest = min(map(len, recorded.prompts))
        raise BundleError(
            4011,
            "no prompt of the reference fits the bundle",
            where=f"{recorded.source} on {backend.name}",
            expected=f"expected prompts of at most {longest} tokens, the shortest has {shortest}",
            fix="a larger --capacity or --length, or --reference transformers, which cuts them",
        )
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
