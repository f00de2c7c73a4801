"""A finished bundle compiled for another engine: same graphs, same weights, new plans.

    BUNDLE -> copy without plans -> fixed cache capacity -> parity -> plans -> OUT

Plans run on the GPUs and with the TensorRT release they were built for, so whoever deploys a bundle builds them
there; the checkpoint and the training packages are not needed for that.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.console import message
from ..core.errors import InputError, ModelError
from ..core.files import atomic_folder, atomic_write_json
from ..engines.bundle import MANIFEST, Bundle, Manifest, describe_files, read_bundle
from ..engines.cross import cross_inputs
from ..engines.specs import decoder_spec
from ..models.folder import ModelFolder
from ..models.store import resolve
from .capacity import fix_capacity
from .cross_source import check_cross
from .export import rewrite
from .lora import KIND as LORA
from .parity import Report, Verify, verify
from .plans import add_plans, plan_findings, prepare
from .prefix import check_prefix
from .target import Target, Wishes, choose
from .yardstick import find_reference


@dataclass(frozen=True)
class Recompile:
    """What to compile.

    Attributes:
        bundle: folder that ``latentwire export`` wrote.
        out: new folder.
        wishes: the target; precision and flavour are the bundle's.
        overwrite: replace a folder that is there.
        reference: see ``yardstick.find_reference``.
        threads: computing threads; None: all.
        verify: ``full``, ``weights`` or ``none``; without the bundle's model on this machine: none.
    """

    bundle: Path
    out: Path
    wishes: Wishes
    overwrite: bool = False
    reference: str = "auto"
    threads: int | None = None
    verify: Verify = "full"


def is_bundle(path: str) -> bool:
    """The folder is a bundle, not a checkpoint."""
    return (Path(path) / MANIFEST).is_file()


def recompile(request: Recompile) -> Bundle:
    """Compile and return the new bundle.

    Raises:
        ModelError: 3225 a feature of the bundle that the target cannot run.
        InputError: 2111 another precision, flavour or capacity than the bundle's, or an impossible target.
        BundleError: 4001-4009 the bundle; 4010 parity failed; 4012 as ``plan.write_plan``.
        EnvironmentFault: 5001 no GPU, 5003 memory, 5004 disk, 5008 ``out`` exists, 5011 a package is missing.
    """
    source = read_bundle(request.bundle)
    target = prepare(chosen(source, request.wishes))
    check_cross(source.manifest.features, target)
    check_prefix(source.manifest.features, target)
    with atomic_folder(request.out, overwrite=request.overwrite) as folder:
        bundle = copy(source, target, folder)
        llm = _model(bundle) if request.verify != "none" else None
        how: Verify = request.verify if llm else "none"
        changed = LORA in bundle.manifest.features
        full = llm is not None and how == "full"
        yardstick = find_reference(request.reference, llm, request.bundle, changed=changed) if llm and full else None
        report = verify(bundle, llm, yardstick, how, threads=request.threads) if llm else Report(how, "", ())
        compiled = rewrite(bundle, add_plans(bundle, target), report)
        plans = plan_findings(compiled, llm, yardstick, how, request.threads) if llm else ()
        if plans:
            rewrite(compiled, compiled.manifest, replace(report, findings=(*report.without("trt"), *plans)))
    return read_bundle(request.out, verify="size")


def chosen(source: Bundle, wishes: Wishes) -> Target:
    """The target, with what the bundle's decoder is already; InputError 2111 where they differ."""
    m = source.manifest
    fixed = {"precision": m.precision, "flavour": m.flavour} | ({"capacity": m.capacity} if m.capacity else {})
    for name, have in fixed.items():
        if getattr(wishes, name) not in (None, have):
            raise InputError(
                2111,
                "the bundle was exported otherwise",
                where=f"--{name} {getattr(wishes, name)}",
                expected=f"{source.path} has {have}",
                fix="export the checkpoint again",
            )
    return choose(replace(wishes, precision=m.precision, flavour=m.flavour, capacity=m.capacity or wishes.capacity))


def copy(source: Bundle, target: Target, folder: Path) -> Bundle:
    """The bundle without plans, its decoder fixed to the target's capacity."""
    m = source.manifest
    plans = {plan.file for plan in m.plans.values()}
    for name in m.files:
        if name not in plans:
            shutil.copyfile(source.file(name), folder / name)
    if target.capacity != m.capacity:
        fix_capacity(folder / "decoder.onnx", target.capacity)
    manifest: Manifest = replace(
        m,
        files=describe_files(folder),
        graphs={**m.graphs, "decoder": decoder_spec(m.llm, m.llm.dtype, target.capacity or "C", cross_inputs(m))},
        capacity=target.capacity,
        plans={},
    )
    atomic_write_json(folder / MANIFEST, manifest.to_json())
    return read_bundle(folder, verify="size")


def _model(bundle: Bundle) -> ModelFolder | None:
    info = bundle.manifest.llm
    try:
        llm = resolve(info.name)
    except ModelError:
        llm = None
    if llm is None or llm.fingerprint != info.fingerprint:
        message(f"export: not verified again, {info.name} is not on this machine")
        return None
    return llm
