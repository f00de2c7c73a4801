"""Plans that must not be loaded, and machines that cannot load one. No stand-in: TensorRT-RTX itself answers."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, InputError
from latentwire.engines import trt_module
from latentwire.engines.bundle import Bundle
from latentwire.engines.trt import TrtEngine
from latentwire.engines.trt_memory import HostDevice, open_device
from latentwire.engines.trt_module import Package, check_flavour, load

pytestmark = pytest.mark.trt


@pytest.fixture
def bundle(compiled: Any, tmp_path: Path) -> Bundle:
    """A compiled bundle that may be changed."""
    made = compiled("llama")
    return Bundle(Path(shutil.copytree(made.path, tmp_path / "bundle")), made.manifest)


def run(bundle: Bundle, gpu: str = "sm_89") -> None:
    engine = TrtEngine(bundle, device=HostDevice(gpu), threads=1)
    engine.prefill(engine.alloc(1, 8), np.zeros((1, 2, 128), np.float32), np.array([2]))


def test_no_driver(bundle: Bundle) -> None:
    """Everything fits; the machine cannot. The words are TensorRT-RTX's own."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentFault) as caught:
        run(bundle)
    assert (caught.value.code, caught.value.what) == (5001, "no NVIDIA GPU, or its driver is too old")
    assert "driver version is insufficient" in caught.value.expected


@pytest.mark.parametrize("change", ["byte", "longer", "shorter"])
def test_changed_plan_is_not_loaded(bundle: Bundle, change: str) -> None:
    path = bundle.path / "decoder.plan"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= change == "byte"
    path.write_bytes({"byte": data, "longer": data + b"x", "shorter": data[:-1]}[change])
    with pytest.raises(BundleError) as caught:
        run(bundle)
    assert caught.value.code == 4007
    assert "it was not loaded" in caught.value.expected


def test_other_version(bundle: Bundle) -> None:
    m = bundle.manifest
    plans = {"decoder": replace(m.plans["decoder"], version="1.6.0.1")}
    with pytest.raises(BundleError) as caught:
        run(Bundle(bundle.path, replace(m, plans=plans)))
    assert caught.value.code == 4013
    assert "got 1.6.0.1" in caught.value.expected
    assert "--target tensorrt-rtx --precision fp16 --gpu sm_89" in caught.value.fix
    assert "tensorrt-rtx==1.6.0.1" in caught.value.fix


def test_other_gpu(bundle: Bundle) -> None:
    with pytest.raises(BundleError) as caught:
        run(bundle, "sm_120")
    assert caught.value.code == 4014
    assert caught.value.expected == "expected sm_120, which host is, got sm_89"
    assert "--gpu sm_120" in caught.value.fix


def test_bundle_without_plans(plain: Any) -> None:
    with pytest.raises(BundleError) as caught:
        TrtEngine(plain("llama"), device=HostDevice())
    assert (caught.value.code, caught.value.what) == (4008, "bundle has no plan of its decoder")


def test_machine_without_a_gpu() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentFault) as caught:
        open_device()
    assert (caught.value.code, caught.value.where) == (5001, "--device cuda:0")


def test_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trt_module.PACKAGES, "tensorrt", Package("tensorrt", ("no_such_module_",), "tensorrt", {}))
    with pytest.raises(EnvironmentFault) as caught:
        load("tensorrt")
    assert (caught.value.code, caught.value.where) == (5011, "tensorrt")
    assert caught.value.fix == "pip install 'latentwire[tensorrt]'"


def test_another_package_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI has placeholders without content under these names."""
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(EnvironmentFault) as caught:
        load("tensorrt")
    assert caught.value.code == 5011
    assert "no Builder" in caught.value.expected


def test_unknown_package() -> None:
    with pytest.raises(InputError) as caught:
        load("tensorflow")
    assert caught.value.code == 2111


@pytest.mark.parametrize(
    ("package", "version", "flavour", "able"),
    [
        ("tensorrt", "10.14.1.48", "mask", False),
        ("tensorrt", "10.15.0.1", "mask", True),
        ("tensorrt", "10.16.1.11", "dual", False),
        ("tensorrt", "11.0.0.5", "dual", False),
        ("tensorrt", "11.1.0.5", "dual", True),
        ("tensorrt", "11.4.0.106", "gqa", False),
        ("tensorrt-rtx", "1.7.1.116", "dual", True),
        ("tensorrt-rtx", "1.6.0.1", "dual", False),
    ],
)
def test_what_a_release_can_do(package: str, version: str, flavour: str, able: bool) -> None:
    if able:
        check_flavour(package, version, flavour)
        return
    with pytest.raises(InputError) as caught:
        check_flavour(package, version, flavour)
    assert caught.value.code == 2111
    assert f"{package} {version} cannot run" in caught.value.what


def test_native_builder_without_a_gpu(rtx: Any) -> None:
    """Native TensorRT's factory returns null, which its bindings raise as a TypeError."""
    from latentwire.engines.trt_log import shared_log
    from latentwire.export.plan import make_builder

    class Native:
        def Builder(self, logger: Any) -> None:  # noqa: N802
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EnvironmentFault) as caught:
        make_builder(Native(), shared_log(rtx), "tensorrt")  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.where) == (5001, "tensorrt")
    assert "--target tensorrt-rtx needs none" in caught.value.fix
