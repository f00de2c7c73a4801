"""``latentwire inspect BUNDLE --parity``: the table, the JSON, the exit status, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.core.errors import EXIT_MISMATCH, InputError, ModelError
from latentwire.core.files import atomic_write_json
from latentwire.engines.bundle import MANIFEST, Bundle, describe_files, read_bundle
from latentwire.export import reference
from latentwire.export.export import Request, export_bundle
from latentwire.export.recheck import Recheck, recheck
from latentwire.models.folder import ModelFolder

GATES = ["states", "cached states", "logits", "tokens", "batch", "padding", "steps", "reuse", "refill", "cache"]


@pytest.fixture(scope="module")
def good(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Callable[[str], ModelFolder],
    make_checkpoint: Callable[..., Path],
) -> Bundle:
    folder, llm = tmp_path_factory.mktemp("recheck"), tiny("llama")
    checkpoint = make_checkpoint(folder / "checkpoint", llm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PROMPTS", 4)
        return export_bundle(Request(str(checkpoint), str(llm.path), folder / "bundle", threads=1))


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PROMPTS", 4)


def test_table_of_gates(good: Bundle, tiny: Callable[[str], ModelFolder]) -> None:
    llm = str(tiny("llama").path)
    result = CliRunner().invoke(app, ["parity", str(good.path), "--llm", llm, "--threads", "1", "--quiet"])
    assert result.exit_code == 0, result.output
    for word in [*GATES, "weights", "file", "ort-cpu", "torch-ref", "passed", "rel L2"]:
        assert word in result.output
    assert "failed" not in result.output


def test_failure_is_listed_and_told_by_the_status(
    good: Bundle, tiny: Callable[[str], ModelFolder], tmp_path: Path
) -> None:
    """A bundle whose manifest is in order and whose graph is not: the hashes are right, the numbers are not."""
    folder = tmp_path / "broken"
    shutil.copytree(good.path, folder)
    model = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
    attention = next(n for n in model.functions[0].node if n.op_type == "Attention")
    next(a for a in attention.attribute if a.name == "is_causal").i = 0
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    manifest = replace(read_bundle(good.path).manifest, files=describe_files(folder))
    atomic_write_json(folder / MANIFEST, manifest.to_json())
    words = ["parity", str(folder), "--llm", str(tiny("llama").path), "--backend", "ort-cpu", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == EXIT_MISMATCH
    found = {g["gate"]: g for g in json.loads(result.stdout)["gates"]}
    assert [*found] == ["weights", *GATES]
    assert (found["weights"]["verdict"], found["states"]["verdict"]) == ("passed", "failed")
    assert found["states"]["detail"].startswith("hidden.1: ")
    assert "parity failed: batch, " in result.stderr


def test_inspect_calls_it(good: Bundle) -> None:
    """The model has a name that no store knows: the exporter's own error comes through ``inspect``."""
    result = CliRunner().invoke(app, ["inspect", str(good.path), "--parity", "--json"])
    assert result.exit_code == EXIT_MISMATCH
    assert "LW-3201" in result.stderr


def test_another_version_of_the_model_is_refused(good: Bundle, tiny: Callable[[str], ModelFolder]) -> None:
    with pytest.raises(ModelError) as caught:
        recheck(Recheck(good.path, str(tiny("qwen2").path)))
    assert caught.value.code == 3102


def test_unknown_backend_is_refused(good: Bundle, tiny: Callable[[str], ModelFolder]) -> None:
    with pytest.raises(InputError) as caught:
        recheck(Recheck(good.path, str(tiny("llama").path), backends=("abacus",)))
    assert caught.value.code == 2111
