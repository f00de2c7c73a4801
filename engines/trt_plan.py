"""From a plan's file to an engine of TensorRT: the checks that stand between.

A plan is machine code. Its bytes are hashed as they are handed over, against the manifest; version and GPU are
compared before, what the plan says of itself after. Nothing here computes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ..core.errors import BundleError, EnvironmentFault
from .bundle import Bundle
from .manifest import PlanInfo
from .trt_api import CudaEngine, TensorRt
from .trt_log import shared_log
from .trt_memory import Device

PREFILL: Final = 0
DECODE: Final = 1
"""Profiles of a decoder's plan."""


def open_plan(bundle: Bundle, part: str, trt: TensorRt, device: Device) -> CudaEngine:
    """Load the plan of one part.

    Raises:
        BundleError: 4007 not the bytes that the manifest lists; 4012 it does not fit its graph; 4013 made by
            another TensorRT; 4014 made for other GPUs; 4001 TensorRT refuses it.
        EnvironmentFault: 5001 no driver; 5003 memory.
    """
    info = bundle.manifest.plans[part]
    where = str(bundle.path / info.file)
    if info.version != trt.__version__:
        raise BundleError(
            4013,
            "plan was made by another version of TensorRT",
            where=where,
            expected=f"expected {trt.__version__}, which is installed, got {info.version}",
            fix=f"{rebuild(bundle, info, info.gpus)}; or pip install '{info.package}=={info.version}'",
        )
    if device.gpu() not in info.gpus:
        raise BundleError(
            4014,
            "plan was made for other GPUs",
            where=where,
            expected=f"expected {device.gpu()}, which {device.name} is, got {', '.join(info.gpus)}",
            fix=rebuild(bundle, info, (device.gpu(),)),
        )
    engine = _deserialise(trusted_bytes(bundle, info), trt, where)
    check_engine(engine, bundle, part)
    return engine


def rebuild(bundle: Bundle, info: PlanInfo, gpus: tuple[str, ...]) -> str:
    """The command that makes the plan again."""
    gpu = f" --gpu {','.join(gpus)}" if info.package == "tensorrt-rtx" else ""
    return (
        f"build it again: latentwire export CHECKPOINT --llm {bundle.manifest.llm.name} --target {info.package} "
        f"--precision {bundle.manifest.precision}{gpu} --out NEW"
    )


def trusted_bytes(bundle: Bundle, info: PlanInfo) -> bytes:
    """The plan's content, whose SHA-256 is the manifest's. Raises BundleError 4007 or 4008."""
    path, entry = bundle.file(info.file), bundle.manifest.files[info.file]
    # One read: what is hashed is what is loaded, whatever happens to the file in between.
    with path.open("rb") as f:
        data = f.read(entry.bytes + 1)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != entry.bytes or digest != entry.sha256:
        raise BundleError(
            4007,
            "a file of the bundle was changed",
            where=str(path),
            expected=f"expected {entry.bytes} bytes with SHA-256 {entry.sha256}, got {digest}; it was not loaded",
            fix="export again or copy the bundle again",
        )
    return data


def _deserialise(data: bytes, trt: TensorRt, where: str) -> CudaEngine:
    log = shared_log(trt)
    log.start()
    engine = trt.Runtime(log).deserialize_cuda_engine(data)
    if engine is not None:
        return engine
    raise failure(trt, f"loading {where}")


def failure(trt: TensorRt, where: str) -> BundleError | EnvironmentFault:
    """What TensorRT's last messages mean: no driver, no memory, or something wrong with the plan."""
    log = shared_log(trt)
    said = "; ".join(log.errors(harmless=True))
    log.start()  # the next failure has other reasons
    low = said.lower()
    if "out of memory" in low or "outofmemory" in low or "cudaerror 2:" in low:
        return EnvironmentFault(
            5003, "not enough memory", where=where, expected=said[:300], fix="use a smaller batch or shorter prompts"
        )
    if "driver version is insufficient" in low or "no cuda-capable device" in low:
        return EnvironmentFault(
            5001,
            "no NVIDIA GPU, or its driver is too old",
            where=where,
            expected=said[:300],
            fix="--device cpu runs the same bundle without a GPU",
        )
    return BundleError(
        4001, "TensorRT cannot run a plan", where=where, expected=said[:500] or "it gave no reason", fix="export again"
    )


def check_engine(engine: CudaEngine, bundle: Bundle, part: str) -> None:
    """Raise BundleError 4012 unless the plan has the graph's tensors and, of a decoder, its cache in place."""
    spec = bundle.manifest.graphs[part]
    _expect(
        sorted(engine.get_tensor_name(i) for i in range(engine.num_io_tensors)),
        sorted(t.name for t in (*spec.inputs, *spec.outputs)),
        "tensors",
        part,
    )
    _expect(engine.num_optimization_profiles, 2 if part == "decoder" else 1, "profiles", part)
    if part != "decoder":
        return
    for name in (t.name for t in spec.outputs if t.name.startswith("present_")):
        past = name.replace("present", "past")
        _expect(engine.get_aliased_input_tensor(name), past, f"memory of {name}", part)
        _expect(engine.get_tensor_shape(past)[2], bundle.manifest.capacity, f"cache slots of {past}", part)


def _expect(got: object, wanted: object, what: str, part: str) -> None:
    if got != wanted:
        raise BundleError(
            4012,
            f"the plan differs from its graph: {what}",
            where=f"{part}.plan",
            expected=f"expected {wanted}, got {got}",
            fix="export again",
        )
