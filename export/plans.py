"""A bundle's graphs compiled by TensorRT: every part, one plan each, beside the graphs they were made from.

In: a bundle under construction and a target. Out: the manifest with its plans. ``plan`` makes a single one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..engines.bundle import Bundle, Manifest
from ..engines.trt_module import check_flavour, load
from ..models.folder import ModelFolder
from .backends import backends
from .findings import Finding
from .parity import Verify, verify
from .plan import Job, write_plan
from .plan_gpus import choose_gpus
from .target import Target
from .yardstick import Reference

COMPILED: Final = ("encoder", "adapter", "splice", "decoder")
"""Parts that get a plan. The wire's quantiser stays on ONNX Runtime: a few rows of a small matrix."""


def prepare(target: Target) -> Target:
    """Refuse what can be refused before any work, and name the GPUs: package, release, GPUs.

    Raises:
        InputError: 2111 a flavour or GPU that the package cannot do.
        EnvironmentFault: 5001 a GPU is needed and not there; 5011 package missing.
    """
    if not target.compiled:
        return target
    trt = load(target.kind)
    check_flavour(target.kind, trt.__version__, target.flavour)
    return replace(target, gpus=choose_gpus(trt, target.kind, target.gpus))


def add_plans(bundle: Bundle, target: Target) -> Manifest:
    """Build all plans of the target into the bundle's folder; nothing for an ONNX target.

    Raises:
        InputError, BundleError, EnvironmentFault: as ``plan.write_plan``.
    """
    m = bundle.manifest
    if not target.compiled:
        return m
    sizes = (m.encoder.max_tokens, m.encoder.latents, m.adapter.task_tokens + m.front_rows)
    return replace(m, plans={part: write_plan(Job(part, bundle.path, target, m.llm, *sizes)) for part in COMPILED})


def plan_findings(
    bundle: Bundle, llm: ModelFolder, yardstick: Reference | None, how: Verify, threads: int | None
) -> tuple[Finding, ...]:
    """The gates on the plans themselves, where there is a GPU for them; else one finding that says why not.

    Raises:
        ParityError: 4010, naming the first tensor that departs.
    """
    if how != "full" or not bundle.manifest.plans:
        return ()
    there, absent = backends(bundle, threads, ["trt"])
    if not there:
        return tuple(absent)
    found = verify(bundle, llm, yardstick, how, threads=threads, only=["trt"]).findings
    return tuple(f for f in found if f.backend == "trt")
