"""Which engines are here is found by trying, and what is missing is said with its cure."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from latentwire.engines.available import CHECKS, Availability, available, tried
from latentwire.engines.torch_ref import require_torch
from latentwire.runtime.cli import app


def test_every_engine_is_listed() -> None:
    found = {a.name: a for a in available()}
    assert list(found) == ["ort-cpu", "ort-cuda", "trt", "trt-rtx", "torch-ref"]
    assert found["ort-cpu"].works
    assert found["ort-cpu"].detail.startswith("onnxruntime 1.")
    require_torch()
    assert found["torch-ref"].works
    for engine in found.values():
        assert engine.works or ";" in engine.detail, engine


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had never been installed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    found = tried("torch-ref", *CHECKS["torch-ref"])
    cure = "package not installed; torch; pip install 'latentwire[train]'"
    assert found == Availability("torch-ref", "--engine torch-ref", False, cure)


def test_the_command() -> None:
    table = CliRunner().invoke(app, ["engines"])
    assert table.exit_code == 0
    lines = CliRunner().invoke(app, ["engines", "--json"]).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == list(CHECKS)
    assert all(name in table.stdout for name in CHECKS)
