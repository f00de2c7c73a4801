"""``--help`` of every command: says something, and imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "torch",
    "transformers",
    "onnxruntime",
    "onnx",
    "pyarrow",
    "tokenizers",
    "gguf",
    "ray",
    "tensorrt",
    "fastapi",
    "uvicorn",
]

WALK = """
import json, sys
import typer.testing
from latentwire.cli import COMMANDS, app
runner, told, heavy = typer.testing.CliRunner(), {}, json.loads(sys.argv[1])
def walk(words, command):
    result = runner.invoke(app, [*words, "--help"])
    told[" ".join(words)] = [result.exit_code, result.output, [m for m in heavy if m in sys.modules]]
    for name, sub in getattr(command, "commands", {}).items():
        walk([*words, name], sub)
walk([], typer.main.get_command(app))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[int, str, list[str]]]:
    """Command line -> exit code, what it printed, heavy modules imported so far; one fresh process."""
    run = subprocess.run([sys.executable, "-c", WALK, json.dumps(HEAVY)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, tuple[int, str, list[str]]] = json.loads(run.stdout)
    return found


def test_every_command_explains_itself(told: dict[str, tuple[int, str, list[str]]]) -> None:
    assert {"", "models", "models add", "compress", "generate", "inspect", "demo", "export", "train", "eval"} <= set(
        told
    )
    for words, (code, output, _) in told.items():
        assert code == 0, words
        assert "Usage:" in output, words
        assert "--help" in output, words


def test_help_imports_nothing_heavy(told: dict[str, tuple[int, str, list[str]]]) -> None:
    assert {words: heavy for words, (_, _, heavy) in told.items() if heavy} == {}


def test_the_module_runs_as_a_command_too(root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latentwire.cli", "--version"], capture_output=True, text=True, cwd=root, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("latentwire ")


def test_an_unknown_command_is_told_with_a_guess() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latentwire.cli", "compres"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "compress" in run.stderr
    assert "Traceback" not in run.stderr
