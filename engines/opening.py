"""``open_engine``: the only place that chooses an engine."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal, get_args

from ..core.errors import BundleError, EnvironmentFault, InputError
from .base import PARTS, Engine
from .bundle import Bundle, Verify, read_bundle

BackendName = Literal["auto", "ort", "trt", "torch-ref", "toy"]
BACKENDS: Final[tuple[BackendName, ...]] = get_args(BackendName)
"""``auto``: TensorRT where the bundle has a plan and the device is a GPU, else ONNX Runtime."""


def open_engine(
    path: str | Path,
    *,
    device: str = "cpu",
    backend: str = "auto",
    threads: int | None = None,
    parts: Collection[str] = PARTS,
    verify: Verify = "full",
) -> Engine:
    """Open a bundle and make an engine that runs it.

    Args:
        path: bundle folder.
        device: ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``.
        backend: one of ``BACKENDS``.
        threads: computing threads; None: all that this process may use.
        parts: graphs the caller will use; each is loaded when first called, others are refused.
        verify: see ``read_bundle``.

    Raises:
        BundleError: as ``read_bundle``; 4008 ``trt`` and the bundle has no plan.
        EnvironmentFault: 5001 unknown or missing device, or one that cannot run this bundle; 5011 a package is missing.
        InputError: 2111 unknown backend.
        ValueError: a part that no bundle has; our own mistake, not the user's.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}")
    if backend not in BACKENDS:
        raise InputError(
            2111, "unknown backend", where=f"--engine {backend}", expected=f"expected {', '.join(BACKENDS)}"
        )
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise EnvironmentFault(
            5001,
            "no such device",
            where=f"--device {device}",
            expected="expected cpu, cuda or cuda:N",
            fix="pass --device cpu",
        )
    bundle = read_bundle(path, verify=verify)
    chosen = choose(bundle, device, backend, parts)
    if chosen == "toy":
        from .toy import ToyEngine

        return ToyEngine(bundle)
    if chosen == "torch-ref":
        from .torch_ref import TorchRefEngine

        return TorchRefEngine(bundle, device=device, threads=threads, parts=parts)
    if chosen == "trt":
        from .trt import TrtEngine
        from .trt_memory import open_device

        gpu = open_device(int(device.partition(":")[2] or 0))
        return TrtEngine(bundle, device=gpu, threads=threads, parts=parts)
    if device == "cpu":
        from .ort import OrtCpuEngine

        return OrtCpuEngine(bundle, threads=threads, parts=parts)
    from .ort_cuda import OrtCudaEngine

    return OrtCudaEngine(bundle, device=device, threads=threads, parts=parts)


def choose(bundle: Bundle, device: str, backend: str, parts: Collection[str] = PARTS) -> str:
    """The backend that will run: never ``auto``. Raises as ``open_engine``; loads nothing."""
    manifest, gpu = bundle.manifest, device != "cpu"
    toy = manifest.llm.family == "toy"
    if backend != "auto" and toy != (backend == "toy"):
        raise EnvironmentFault(
            5001,
            "this bundle and this backend do not go together",
            where=f"--engine {backend}",
            expected=f"the bundle is of family {manifest.llm.family}",
            fix="pass --engine auto",
        )
    if toy:
        if gpu:
            raise _wrong_device(device, "the toy engine is numpy", "pass --device cpu")
        return "toy"
    if backend == "trt" and not manifest.plans:
        raise BundleError(
            4008,
            "this bundle has no TensorRT plan",
            where=str(bundle.path),
            expected=f"precision {manifest.precision}, flavour {manifest.flavour}, no plans",
            fix="export again with --target tensorrt on the machine that will run it",
        )
    if backend == "trt" and not gpu:
        raise _wrong_device(device, "TensorRT runs on GPUs", "pass --device cuda")
    if backend == "auto":
        backend = "trt" if gpu and manifest.plans else "ort"
    if backend == "ort" and not gpu and "decoder" in parts and manifest.llm.dtype == "bfloat16":
        expected = "this bundle is bfloat16, for which ONNX Runtime has no kernels on a CPU"
        raise _wrong_device(device, expected, "pass --device cuda, or --engine torch-ref, which is slow")
    if gpu and backend != "torch-ref" and "decoder" in parts and "prefix" in manifest.graphs:
        expected = "its latents go into the cache, which ort-cpu and torch-ref allow"
        raise _wrong_device(device, expected, "pass --device cpu, or --engine torch-ref, which is slow")
    if gpu and backend != "torch-ref" and "decoder" in parts and "cross" in manifest.graphs:
        expected = "its layers read latents, which ort-cpu and torch-ref can"
        raise _wrong_device(device, expected, "pass --device cpu, or --engine torch-ref, which is slow")
    return backend


def _wrong_device(device: str, expected: str, fix: str) -> EnvironmentFault:
    return EnvironmentFault(
        5001, "this device cannot run the bundle", where=f"--device {device}", expected=expected, fix=fix
    )
