"""Checkpoint and LLM to bundle: the pipeline.

    checkpoint, LLM -> decoder, splice -> encoder -> adapter -> manifest -> parity -> plans -> BUNDLE

The bundle appears under its name when the last step has passed; until then there is nothing there.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..core.files import atomic_folder, atomic_write_json
from ..engines.bundle import MANIFEST, Bundle, LlmInfo, Manifest, describe_files, read_bundle
from ..engines.specs import bundle_specs, quantiser_specs
from ..models.folder import ModelFolder
from ..models.store import resolve
from .checkpoint import Adapter, Checkpoint, read_checkpoint
from .cost import asked, measured
from .cross_source import check_cross, cross_source, placed_spec
from .families import DecoderConfig
from .features import check_features, feature_files, manifest_features
from .lora import KIND as LORA
from .lora import Lora, read_lora
from .parity import Report, Verify, verify
from .parts import write_adapter, write_encoder, write_llm
from .plans import add_plans, plan_findings, prepare
from .prefix import check_prefix, prefix_specs, write_prefix
from .quantiser import code_dims, write_quantiser
from .target import PLAIN, Target
from .yardstick import find_reference

PACKAGES: Final = ("latentwire", "onnx", "numpy", "safetensors", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        checkpoint: folder or ``reference``.
        llm: model name, folder or ``hf:org/name``.
        out: bundle folder to make.
        overwrite: replace a folder that is there.
        reference: what parity is measured against: ``auto``, ``transformers`` or ``recorded``.
        threads: computing threads; None: all.
        target: the engine it is for.
        verify: ``full``, ``weights`` or ``none``.
        measure: questions that a quantised decoder is measured on: ``demo``, a file, or ``none``.
        encoder: kind of the checkpoint's second encoder; empty: its first one.
    """

    checkpoint: str
    llm: str
    out: Path
    overwrite: bool = False
    reference: str = "auto"
    threads: int | None = None
    target: Target = PLAIN
    verify: Verify = "full"
    measure: str = "demo"
    encoder: str = ""


def export_bundle(request: Request) -> Bundle:
    """Export, verify and return the bundle.

    Raises:
        InputError: 2111 a target that nothing here can make.
        ModelError: 3101, 3102 the checkpoint is for other models; 3201-3207 the model; 3220, 3221, 3223-3225 the
            checkpoint.
        BundleError: 4001 graphs that do not fit; 4010 parity failed; 4011 nothing to compare with; 4012 TensorRT
            cannot build a graph, or reads it differently.
        EnvironmentFault: 5001 no GPU, 5003 memory, 5004 disk, 5008 ``out`` exists, 5011 a package is missing.
    """
    target = prepare(request.target)
    checkpoint, llm = read_checkpoint(request.checkpoint, request.encoder), resolve(request.llm)
    adapter = checkpoint.adapter_for(llm)
    check_features(adapter)
    check_prefix(adapter.features, target)
    check_cross(adapter.features, target)
    lora, cross = changes(checkpoint, adapter), cross_source(checkpoint, adapter)
    full = request.verify == "full"
    yardstick = find_reference(request.reference, llm, checkpoint.rest, changed=lora is not None) if full else None
    quantised = target.precision.matmul != "plain"
    questions = asked(request.measure) if quantised else []
    scales = calibrated(llm, lora) if target.precision.matmul == "fp8" else None
    with atomic_folder(request.out, overwrite=request.overwrite) as folder:
        config = write_llm(llm, folder, target, scales, lora, cross)
        write_encoder(checkpoint, llm, folder, target)
        write_quantiser(checkpoint, folder)
        write_adapter(checkpoint, adapter, config, folder, target)
        write_prefix(checkpoint, adapter, config, folder)
        bundle = seal(checkpoint, adapter, llm_info(llm, config, target.precision.dtype), target, folder)
        report = verify(bundle, llm, yardstick, request.verify, threads=request.threads)

        def write_plain(scratch: Path) -> Bundle:
            write_encoder(checkpoint, llm, scratch)
            write_adapter(checkpoint, adapter, write_llm(llm, scratch, lora=lora, cross=cross), scratch)
            write_prefix(checkpoint, adapter, config, scratch)
            return seal(checkpoint, adapter, llm_info(llm, config), PLAIN, scratch)

        cost = measured(bundle, questions, write_plain, threads=request.threads)
        compiled = rewrite(bundle, add_plans(bundle, target), report, cost)
        plans = plan_findings(compiled, llm, yardstick, request.verify, request.threads)
        if plans:
            rewrite(compiled, compiled.manifest, replace(report, findings=(*report.without("trt"), *plans)))
    return read_bundle(request.out, verify="size")


def rewrite(bundle: Bundle, manifest: Manifest, report: Report, cost: Mapping[str, Any] | None = None) -> Bundle:
    """The manifest once more, with the files that came since and what was measured; the bundle as it is now."""
    quality = {**manifest.quality, "parity": report.to_json(), **(cost or {})}
    whole = replace(manifest, quality=quality, files=describe_files(bundle.path))
    atomic_write_json(bundle.path / MANIFEST, whole.to_json())
    return read_bundle(bundle.path, verify="size")


def changes(checkpoint: Checkpoint, adapter: Adapter) -> Lora | None:
    """The LoRA of a checkpoint; ModelError 3224 for weights of features that are not what they should be."""
    files = feature_files(checkpoint, adapter)
    return read_lora(files[LORA], adapter.features[LORA]) if LORA in files else None


def calibrated(llm: ModelFolder, lora: Lora | None) -> dict[str, float]:
    """Activation scales of an fp8 decoder; EnvironmentFault 5011 without NVIDIA ModelOpt."""
    from .fp8 import calibrate

    return dict(calibrate(llm, lora=lora))


def llm_info(llm: ModelFolder, config: DecoderConfig, dtype: str = "float32") -> LlmInfo:
    """What the manifest says of the LLM."""
    c = config
    sizes = (c.hidden_size, c.vocab_size, c.num_layers, c.num_kv_heads, c.head_dim, c.max_positions)
    return LlmInfo(llm.name, llm.fingerprint, c.family, *sizes, c.bos, c.eos, c.pad, dtype)


def seal(checkpoint: Checkpoint, adapter: Adapter, llm: LlmInfo, target: Target, folder: Path) -> Bundle:
    """Write the manifest over the files that lie in ``folder``, and read it back as anyone would."""
    manifest = Manifest(
        files=describe_files(folder),
        encoder=checkpoint.encoder,
        llm=llm,
        adapter=adapter.info,
        graphs=bundle_specs(llm, checkpoint.encoder.d_z, llm.dtype, target.capacity or "C", placed_spec(folder))
        | quantiser_specs(checkpoint.encoder.d_z, code_dims(folder))
        | prefix_specs(adapter.features, llm, checkpoint.encoder.d_z),
        precision=target.precision.name,
        quality=checkpoint.quality,
        versions=versions(),
        flavour=target.flavour,
        capacity=target.capacity,
        features=manifest_features(adapter),
    )
    atomic_write_json(folder / MANIFEST, manifest.to_json())
    return read_bundle(folder, verify="size")


def versions() -> dict[str, Any]:
    """Installed versions of what took part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
