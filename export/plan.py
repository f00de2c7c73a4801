"""One graph to one TensorRT plan: parse, audit, build.

In: an ONNX file of a bundle, a target, sizes. Out: the plan beside it and what the manifest says of it. Whatever
TensorRT reports becomes one of our errors or is dropped. Runs on a CPU with TensorRT-RTX; native TensorRT builds
on the machine that will run the plan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import onnx

from ..core.console import track
from ..core.errors import BundleError, EnvironmentFault, InputError
from ..core.files import disk_faults, require_space
from ..engines.manifest import PlanInfo
from ..engines.specs import DecoderSizes
from ..engines.trt_api import AttentionInput, Builder, BuilderConfig, HostMemory, Network, TensorRt
from ..engines.trt_log import Log, shared_log
from ..engines.trt_module import LABEL, check_flavour, load
from .audit import Decoder, as_class, audit
from .plan_gpus import choose_gpus
from .plan_monitor import deferred_signals, make_monitor
from .target import Target

NO_KERNEL: Final = "float32"
"""TensorRT has no fused attention of this dtype."""
DECODE: Final = "S"
"""Dimension of the decoder that is 1 in the second profile."""


Range = tuple[int, int, int]
"""Smallest, usual and largest size of a dimension. A plan is fastest near the usual one."""
USUAL: Final = {"B": 32, "S": 64, "T": 64}


@dataclass(frozen=True)
class Job:
    """One plan to make.

    Attributes:
        part: ``encoder``, ``adapter``, ``splice`` or ``decoder``; its graph is ``part.onnx`` in ``folder``.
        folder: bundle under construction; the plan is written there.
        target: package, GPUs, largest batch and prompt; of a decoder also dtype, flavour and capacity.
        llm: sizes of the language model.
        text: longest text of the encoder, in tokens.
        latents: largest M.
        task_tokens: K, with V rows of prefix tuning; splice reads up to M + K + V rows.
        workspace: bytes of scratch memory that kernels may use; None: TensorRT's own limit.
    """

    part: str
    folder: Path
    target: Target
    llm: DecoderSizes
    text: int
    latents: int
    task_tokens: int
    workspace: int | None = None

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / f"{self.part}.onnx"

    @property
    def decoder(self) -> Decoder | None:
        """What a decoder must have become; None for the other parts."""
        t = self.target
        return Decoder(self.llm, t.precision.dtype, t.capacity, t.flavour) if self.part == "decoder" else None

    @property
    def length(self) -> int:
        """Largest S of the decoder and the encoder, M of the adapter, T of splice."""
        return {"encoder": self.text, "adapter": self.latents}.get(self.part, self.target.length)

    def ranges(self) -> dict[str, Range]:
        """Range of each named dimension of the graph."""
        tops = {"B": self.target.batch, "S": self.length, "T": self.length, "M": self.latents}
        tops["R"] = self.latents + self.task_tokens
        return {dim: (1, min(top, USUAL.get(dim, top)), top) for dim, top in tops.items()}


def write_plan(job: Job) -> PlanInfo:
    """Build ``part.plan`` beside ``part.onnx``.

    Raises:
        InputError: 2111 a precision, flavour, GPU or size that the target cannot do.
        BundleError: 4012 TensorRT cannot read or build the graph, or read it differently.
        EnvironmentFault: 5001 native TensorRT without a GPU; 5003 memory; 5004 disk; 5011 package missing.
    """
    plan, info = build_plan(job)
    path = job.folder / info.file
    require_space(job.folder, plan.nbytes)
    with disk_faults(path):
        path.write_bytes(memoryview(cast(Any, plan)))
    return info


def build_plan(job: Job) -> tuple[HostMemory, PlanInfo]:
    """The plan in memory and its entry for the manifest. Raises as ``write_plan``."""
    trt = load(job.target.kind)
    check(trt, job)
    gpus = choose_gpus(trt, job.target.kind, job.target.gpus)
    log = shared_log(trt)
    log.start()
    start = time.monotonic()
    builder = make_builder(trt, log, job.target.kind)
    network, found = read(trt, builder, log, job)
    config = configure(trt, builder, network, job, gpus)
    plan = build(trt, builder, network, config, log, job.part)
    found |= {"warnings": sorted(set(log.warnings()))[:8], "verified": LABEL}
    info = PlanInfo(
        file=f"{job.part}.plan",
        package=job.target.kind,
        version=trt.__version__,
        gpus=gpus,
        batch=job.target.batch,
        length=job.length,
        seconds=round(time.monotonic() - start, 1),
        audit=found,
    )
    return plan, info


def check(trt: TensorRt, job: Job) -> None:
    """Refuse what cannot work before any work. Raises InputError 2111."""
    if job.decoder is None:
        return
    if job.decoder.dtype == NO_KERNEL:
        raise InputError(
            2111, "TensorRT has no attention kernel for this precision", where="float32", fix="--precision fp16"
        )
    check_flavour(job.target.kind, trt.__version__, job.decoder.flavour)
    if not 1 <= job.length <= job.decoder.capacity:
        raise InputError(
            2111,
            "longest prompt does not fit the cache",
            where=f"--length {job.length}",
            expected=f"expected 1..{job.decoder.capacity} positions",
        )


def make_builder(trt: TensorRt, log: Log, package: str) -> Builder:
    """A builder. Raises EnvironmentFault 5001 where native TensorRT finds no GPU."""
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as e:  # its factory returns null
        raise EnvironmentFault(
            5001,
            "no such device",
            where=package,
            expected=("; ".join(log.errors(harmless=True)) or str(e))[:300],
            fix="native TensorRT builds on a machine with a GPU; --target tensorrt-rtx needs none",
        ) from e


def read(trt: TensorRt, builder: Builder, log: Log, job: Job) -> tuple[Network, dict[str, Any]]:
    """Parse and audit one graph. Raises BundleError 4012."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(job.graph)) or parser.num_errors:
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        first = found[0] if found else None
        raise BundleError(
            4012,
            "TensorRT cannot read the graph",
            where=f"{job.graph}: {f'node {first.node_name()} ({first.node_operator()})' if first else 'no node'}",
            expected=(first.desc() if first else "; ".join(log.errors()))[:400],
            fix="report it with the TensorRT version",
        )
    model = onnx.load(str(job.graph), load_external_data=False)
    return network, audit(trt, network, model, job.decoder)


def configure(trt: TensorRt, builder: Builder, network: Network, job: Job, gpus: tuple[str, ...]) -> BuilderConfig:
    """GPUs, limits and profiles: one for each part, and a second of the decoder for single steps."""
    config = builder.create_builder_config()
    if job.target.kind == "tensorrt-rtx":
        config.num_compute_capabilities = len(gpus)
        for i, gpu in enumerate(gpus):
            config.set_compute_capability(getattr(cast(Any, trt).ComputeCapability, gpu.upper().replace("_", "")), i)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.decoder is None:
        allow_single_operators(trt, network)
    ranges = job.ranges()
    add_profile(builder, config, network, job, ranges)
    if job.decoder is not None:
        add_profile(builder, config, network, job, ranges | {DECODE: (1, 1, 1)})
    return config


def allow_single_operators(trt: TensorRt, network: Network) -> None:
    """Attention of the encoder is float32, for which there is no fused kernel."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type.name == "ATTENTION_INPUT":
            cast(AttentionInput, as_class(layer, trt.IAttentionInputLayer)).attention.decomposable = True


def add_profile(
    builder: Builder, config: BuilderConfig, network: Network, job: Job, ranges: Mapping[str, Range]
) -> None:
    """One optimisation profile: a range for each named dimension of each input."""
    profile = builder.create_optimization_profile()
    model = onnx.load(str(job.graph), load_external_data=False)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        low, usual, high = (
            [d.dim_value if d.HasField("dim_value") else ranges[d.dim_param][i] for d in dims] for i in range(3)
        )
        profile.set_shape(value.name, low, usual, high)
    if config.add_optimization_profile(profile) < 0:
        raise BundleError(4012, "TensorRT refuses the ranges of sizes", where=job.part, expected=str(dict(ranges)))


def build(trt: TensorRt, builder: Builder, network: Network, config: BuilderConfig, log: Log, part: str) -> HostMemory:
    """Compile, with progress. Raises BundleError 4012, EnvironmentFault 5003, or what a signal raises."""
    plan, memory = None, False
    with track(f"compile {part}", unit="step") as progress, deferred_signals() as stop:
        config.progress_monitor = make_monitor(trt, progress, stop)
        try:
            plan = builder.build_serialized_network(network, config)
        except MemoryError:
            memory = True
        finally:
            config.progress_monitor = None
    if plan is not None:
        return plan
    reason = "; ".join(log.errors())[:500]
    if memory or any(words in reason.lower() for words in ("out of memory", "bad_alloc", "insufficient memory")):
        raise EnvironmentFault(5003, "not enough memory", where=f"compiling {part}", expected=reason)
    raise BundleError(
        4012,
        "TensorRT cannot build the graph",
        where=part,
        expected=reason,
        fix="another precision, or report it with the TensorRT version",
    )
