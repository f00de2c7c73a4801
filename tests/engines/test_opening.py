"""Which engine opens a bundle, and what is said when none can."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, InputError
from latentwire.engines.base import PARTS
from latentwire.engines.bundle import Bundle, PlanInfo
from latentwire.engines.opening import BACKENDS, choose, open_engine
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime.choices import BackendName

PLAN = PlanInfo("decoder.plan", "tensorrt", "11.4.0", ("sm_90",), 8, 64, 1.0, {})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("opening"))


def like(toy: Bundle, *, family: str = "llama", dtype: str = "float32", plans: bool = False) -> Bundle:
    """A bundle as far as choosing looks at it."""
    llm = replace(toy.manifest.llm, family=family, dtype=dtype)
    return replace(toy, manifest=replace(toy.manifest, llm=llm, plans={"decoder": PLAN} if plans else {}))


@pytest.mark.parametrize(
    ("dtype", "plans", "device", "backend", "chosen"),
    [
        ("float32", False, "cpu", "auto", "ort"),
        ("float16", False, "cpu", "ort", "ort"),
        ("float32", False, "cuda", "auto", "ort"),
        ("bfloat16", False, "cuda:1", "auto", "ort"),
        ("float16", True, "cpu", "auto", "ort"),
        ("float16", True, "cuda", "auto", "trt"),
        ("float16", True, "cuda", "ort", "ort"),
        ("float16", True, "cuda", "trt", "trt"),
        ("bfloat16", False, "cpu", "torch-ref", "torch-ref"),
        ("bfloat16", False, "cuda", "torch-ref", "torch-ref"),
    ],
)
def test_choice(toy: Bundle, dtype: str, plans: bool, device: str, backend: str, chosen: str) -> None:
    assert choose(like(toy, dtype=dtype, plans=plans), device, backend) == chosen


@pytest.mark.parametrize(
    ("dtype", "device", "backend", "said"),
    [
        ("bfloat16", "cpu", "auto", "--engine torch-ref"),
        ("bfloat16", "cpu", "ort", "ONNX Runtime has no kernels on a CPU"),
        ("float32", "cpu", "toy", "the bundle is of family llama"),
    ],
)
def test_5001_what_cannot_be(toy: Bundle, dtype: str, device: str, backend: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said) as caught:
        choose(like(toy, dtype=dtype), device, backend)
    assert caught.value.code == 5001


def test_half_a_bundle_has_no_dtype_to_refuse(toy: Bundle) -> None:
    """Compressing needs the encoder only, whatever the decoder is."""
    parts: Collection[str] = ["encoder"]
    assert choose(like(toy, dtype="bfloat16"), "cpu", "auto", parts) == "ort"


def test_tensorrt_needs_a_plan_and_a_gpu(toy: Bundle) -> None:
    with pytest.raises(BundleError, match="no TensorRT plan") as no_plan:
        choose(like(toy), "cuda", "trt")
    assert no_plan.value.code == 4008
    with pytest.raises(EnvironmentFault, match="TensorRT runs on GPUs") as no_gpu:
        choose(like(toy, plans=True), "cpu", "trt")
    assert no_gpu.value.code == 5001


def test_toy_bundles_run_on_the_toy_engine_only(toy: Bundle) -> None:
    assert [open_engine(toy.path, backend=name).name for name in ("auto", "toy")] == ["toy", "toy"]
    for backend in sorted(set(BACKENDS) - {"auto", "toy"}):
        with pytest.raises(EnvironmentFault, match="do not go together"):
            open_engine(toy.path, backend=backend)
    with pytest.raises(EnvironmentFault, match="the toy engine is numpy"):
        open_engine(toy.path, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:0 ", "cpu:0", ""])
def test_5001_odd_devices(toy: Bundle, device: str) -> None:
    with pytest.raises(EnvironmentFault, match="expected cpu, cuda or cuda:N") as caught:
        open_engine(toy.path, device=device)
    assert caught.value.code == 5001


def test_2111_odd_backend(toy: Bundle) -> None:
    with pytest.raises(InputError, match="torch-ref") as caught:
        open_engine(toy.path, backend="onnx")
    assert caught.value.code == 2111


def test_the_command_line_offers_the_same_names() -> None:
    assert get_args(BackendName) == BACKENDS


def test_no_such_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_engine(tmp_path, parts=PARTS)
    assert caught.value.code == 4001
