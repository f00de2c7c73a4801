"""The wheel in an environment of its own, with nothing but what it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.engines.toy import write_toy_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment that holds the wheel without extras."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listing.split("\0")):
        if (root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    _run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    binaries = folder / "venv" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    _run([*pip, "-c", str(root / "scripts" / "constraints.txt"), str(source)], folder)
    return binaries


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    run = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    return run


def test_no_torch_was_installed(clean: Path, tmp_path: Path) -> None:
    listed = _run([str(clean / "python"), "-m", "pip", "list", "--format=json"], tmp_path).stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert "latentwire" in names
    assert not names & {"torch", "transformers", "onnx", "tensorrt", "ray"}


def test_toy_bundle_answers(clean: Path, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", max_tokens=4096)
    _compress_and_answer(clean, tmp_path, tmp_path / "bundle")


def test_real_bundle_answers(clean: Path, tmp_path: Path, smollm2_bundle: Path) -> None:
    _compress_and_answer(clean, tmp_path, smollm2_bundle)


def _compress_and_answer(clean: Path, folder: Path, bundle: Path) -> None:
    """The two halves in two processes; the second sees bytes only."""
    texts = ["The bridge was opened in 1932 and carries eight lanes of traffic.", "Water boils at 100 degrees."]
    rows = [json.dumps({"custom_id": f"r{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = [str(clean / "latentwire")]
    _run([*command, "compress", "docs.jsonl", "-o", "out", "--bundle", str(bundle)], folder)
    (folder / "docs.jsonl").unlink()
    question = ["--question", "When was it opened?"]
    told = _run([*command, "generate", "out", *question, "--bundle", str(bundle), "--json"], folder).stdout
    answers = [json.loads(line) for line in told.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["r0", "r1"]
    assert all(isinstance(answer["answer"], str) for answer in answers)
