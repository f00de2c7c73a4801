"""``latentwire doctor``: what is here is found, what is broken is told, and the exit status follows."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from latentwire.cli import app
from latentwire.core.errors import BundleError, EnvironmentFault
from latentwire.engines import ort_probe
from latentwire.runtime import doctor, installed


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words)], catch_exceptions=False)


def test_what_works_here_is_tried(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTWIRE_HOME", str(tmp_path / "not" / "made"))
    result = call("--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["healthy"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["toy bundle"]["works"]
    assert "bytes, answered" in checks["toy bundle"]["detail"]
    assert checks["ort-cpu"]["works"]
    assert checks["ort-cpu"]["detail"].endswith("computes")
    assert {"ort-cpu", "ort-cuda", "trt", "trt-rtx", "torch-ref"} <= checks.keys()
    assert found["extras"][0]["installed"]["numpy"] == np.__version__
    assert set(found["models"].values()) == {"not added"}
    assert str(tmp_path) in found["machine"]["models in"]
    assert not (tmp_path / "not").exists()


def test_the_same_for_people() -> None:
    result = call()
    assert result.exit_code == 0
    assert "bundles run here" in result.stdout
    assert "smollm2-135m" in result.stdout
    for line in result.stdout.splitlines():
        if line.startswith("ort-cuda") and " no " in line:
            assert "pip install" in line


def test_a_broken_package_is_told_and_changes_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> None:
        raise ImportError("libsomething.so.9: cannot open shared object file")

    monkeypatch.setattr(ort_probe, "compute", broken)
    result = call("--json")
    assert result.exit_code == 6
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    (check,) = (c for c in found["checks"] if c["name"] == "ort-cpu")
    assert (check["works"], "libsomething" in check["detail"]) == (False, True)
    assert "bundles do not run here" in call().stdout


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(package: str) -> str:
        if package in ("tokenizers", "gguf"):
            raise importlib.metadata.PackageNotFoundError(package)
        return known(package)

    monkeypatch.setattr(installed, "version", version)
    groups = {extra.name: extra for extra in installed.extras()}
    assert groups["everything"].missing == ("tokenizers",)
    assert groups["everything"].fix == "pip install latentwire"
    assert "gguf" in groups["export"].missing
    assert groups["export"].fix == "pip install 'latentwire[export]'"
    assert not {"test", "fuzz"} & groups.keys()
    result = call()
    assert result.exit_code == 6
    assert "pip install 'latentwire[export]'" in result.stdout


def test_a_bundle_that_does_not_run_is_no_reason_to_die(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    found = doctor.examine(tmp_path)
    (check,) = (c for c in found.checks if c.name == f"{tmp_path} on ort-cpu")
    assert not check.works
    assert "LW-40" in check.detail


def test_the_probe_notices_wrong_numbers_and_missing_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    ort_probe.compute("cpu")
    with pytest.raises(EnvironmentFault, match="LW-5001"):
        ort_probe.compute("tpu")

    class Wrong:
        def run(self, *_: object) -> list[np.ndarray]:
            return [np.zeros((2, 2), np.float32)]

    monkeypatch.setattr(ort_probe, "open_session", lambda *_, **__: Wrong())
    with pytest.raises(BundleError, match="LW-4001 ONNX Runtime computes wrong numbers"):
        ort_probe.compute("cpu")
