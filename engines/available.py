"""Which engines can run on this machine, and what the others lack. Tried, not guessed: every part is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from ..core.errors import EnvironmentFault


@dataclass(frozen=True)
class Availability:
    """One engine.

    Attributes:
        name: as engines call themselves.
        options: of the command line that choose it.
        works: it can be opened here.
        detail: what runs it, or what is missing and how to get it.
    """

    name: str
    options: str
    works: bool
    detail: str


def available() -> list[Availability]:
    """Every engine that runs exported bundles."""
    return [tried(name, options, check) for name, (options, check) in CHECKS.items()]


def tried(name: str, options: str, check: Callable[[], str]) -> Availability:
    """The outcome of one check."""
    try:
        return Availability(name, options, True, check())
    except EnvironmentFault as e:
        return Availability(name, options, False, "; ".join(x for x in (e.what, e.expected or e.where, e.fix) if x))


def _ort_cpu() -> str:
    from .ort_session import VERSION

    return f"onnxruntime {VERSION}"


def _ort_cuda() -> str:
    from .ort_cuda import place_of

    place_of("cuda").empty(1)
    return _ort_cpu()


def _trt(package: str) -> str:
    from .trt_memory import open_device
    from .trt_module import load

    found = load(package)
    device = open_device()
    return f"{package} {found.__version__}, {device.name}, {device.gpu()}"


def _torch_ref() -> str:
    from .torch_ref import require_torch

    require_torch()
    return f"torch {version('torch')}, slow: for comparisons"


CHECKS: Final[dict[str, tuple[str, Callable[[], str]]]] = {
    "ort-cpu": ("", _ort_cpu),
    "ort-cuda": ("--device cuda", _ort_cuda),
    "trt": ("--device cuda --engine trt", lambda: _trt("tensorrt")),
    "trt-rtx": ("--device cuda --engine trt", lambda: _trt("tensorrt-rtx")),
    "torch-ref": ("--engine torch-ref", _torch_ref),
}
"""Engine -> options that choose it, and a check that says what runs it or raises EnvironmentFault."""
