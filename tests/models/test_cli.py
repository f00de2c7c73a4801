"""``latentwire models``: what users and scripts see."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentwire.core.errors import ModelError
from latentwire.models import catalogue, download
from latentwire.models.cli import app

run = CliRunner().invoke


@pytest.fixture
def ready(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(download.WHEELS_VARIABLE, str(tiny.wheels))
    return tiny


def latentwire(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "latentwire.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_add_list_path_remove(ready: Any) -> None:
    added = run(app, ["add", "tiny"])
    assert (added.exit_code, added.stdout) == (0, f"{ready.folder}\n")
    assert "tiny is ready (llama, fingerprint " in added.stderr
    assert run(app, ["path", "tiny"]).stdout == f"{ready.folder}\n"
    table = run(app, ["list"]).stdout.splitlines()
    assert next(line for line in table if line.startswith("tiny")).split()[1] == "ready"
    assert next(line for line in table if line.startswith("smollm2-135m")).split()[1:3] == ["not", "added"]
    removed = run(app, ["remove", "tiny", "--yes"])
    assert "freed" in removed.stdout
    assert run(app, ["remove", "tiny"]).stdout == "tiny: was not here\n"


def test_list_json(ready: Any) -> None:
    run(app, ["add", "tiny", "--quiet"])
    found = {one["name"]: one for one in json.loads(run(app, ["list", "--json"]).stdout)}
    assert found["tiny"]["state"] == "ready"
    assert found["tiny"]["disk_bytes"] > 0
    assert found["smollm2-135m"]["state"] == "not added"
    assert set(found["tiny"]) == {
        "name", "title", "state", "parameters", "licence", "path", "disk_bytes", "download_bytes",
    }  # fmt: skip


def test_quiet(ready: Any) -> None:
    assert run(app, ["add", "tiny", "--quiet"]).stderr == ""


def test_wheels_by_hand(tiny: Any) -> None:
    wheels = [item for path in sorted(tiny.wheels.iterdir()) for item in ("--wheel", str(path))]
    assert run(app, ["add", "tiny", *wheels]).exit_code == 0


def test_remove_asks(ready: Any) -> None:
    run(app, ["add", "tiny"])
    refused = run(app, ["remove", "tiny"])
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert ready.folder.is_dir()


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("n", False)])
def test_remove_on_a_terminal(ready: Any, answer: str, gone: bool) -> None:
    run(app, ["add", "tiny"])
    code = (
        "import pickle, sys\nfrom latentwire.models import catalogue\nfrom latentwire.models.cli import app\n"
        "catalogue.CATALOGUE['tiny'] = pickle.loads(bytes.fromhex(sys.argv.pop(1)))\napp()"
    )
    parent, terminal = pty.openpty()
    try:
        command = [sys.executable, "-c", code, pickle.dumps(ready.entry).hex(), "remove", "tiny"]
        os.write(parent, f"{answer}\n".encode())
        subprocess.run(command, stdin=terminal, capture_output=True, timeout=60, check=False)
    finally:
        os.close(terminal)
        os.close(parent)
    assert ready.folder.exists() != gone


def test_terms(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = catalogue.Terms("Terms of Tiny", "https://example.org/terms", "be kind")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", dataclasses.replace(ready.entry, terms=terms))
    refused = run(app, ["add", "tiny"])
    assert isinstance(refused.exception, ModelError)
    assert refused.exception.code == 3205
    assert "https://example.org/terms" in refused.stderr
    accepted = run(app, ["add", "tiny", "--accept-terms"])
    assert accepted.exit_code == 0
    assert "be kind" in accepted.stderr
    assert json.loads((ready.folder / "latentwire.json").read_text())["terms"]["title"] == "Terms of Tiny"


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = latentwire("models", "add", "llama-9000")
    assert done.returncode == 5
    assert done.stderr.startswith("LW-3201 unknown model; llama-9000; one of smollm2-135m")
    assert len(done.stderr.splitlines()) == 1
    done = latentwire("models", "path", "smollm2-135m")
    assert done.returncode == 5
    assert done.stderr.startswith("LW-3204 model is not here yet; smollm2-135m; ")
