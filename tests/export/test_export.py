"""The pipeline: a checkpoint and an LLM become a bundle that opens and runs, or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, InputError, LatentWireError, ModelError
from latentwire.engines.bundle import Bundle, read_bundle
from latentwire.engines.opening import open_engine
from latentwire.export import checkpoint as checkpoint_module
from latentwire.export import reference
from latentwire.export.checkpoint import read_checkpoint
from latentwire.export.export import Request, export_bundle
from latentwire.export.findings import ParityError
from latentwire.export.target import Wishes, choose
from latentwire.models.folder import ModelFolder

KIND = "llama-tied"
Make = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: Callable[[str], ModelFolder], make_checkpoint: Make) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", tiny(KIND))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store: models are folders here."""
    monkeypatch.setenv("LATENTWIRE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def request_for(home: Path, checkpoint: Path, tiny: Callable[[str], ModelFolder], tmp_path: Path) -> Request:
    # A folder is called by its own name, so the checkpoint's adapter is found by fingerprint.
    return Request(str(checkpoint), str(tiny(KIND).path), tmp_path / "bundle", threads=1)


@pytest.fixture
def bundle(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(reference, "PROMPTS", 2)
    return export_bundle(request_for)


def test_whole_pipeline(bundle: Bundle, checkpoint: Path) -> None:
    """All files are there, the manifest tells what they are, parity passed, the engine answers."""
    m = read_bundle(bundle.path).manifest
    assert set(m.files) == {
        "encoder.onnx",
        "encoder.safetensors",
        "embeddings.safetensors",
        "encoder_tokenizer.json",
        "adapter.onnx",
        "adapter.safetensors",
        "splice.onnx",
        "decoder.onnx",
        "decoder.safetensors",
        "tokenizer.json",
    }
    assert (m.encoder.d_z, m.encoder.model_id, m.adapter.task_tokens) == (6, b"\xab" * 4, 2)
    assert m.quality["nll"] == 2.5
    parity = m.quality["parity"]
    gates = {(g["gate"], g["backend"]): g for g in parity["gates"]}
    assert (parity["verify"], parity["source"].split()[0]) == ("full", "transformers")
    assert {g["verdict"] for (_, backend), g in gates.items() if backend in ("file", "ort-cpu")} == {"passed"}
    assert gates["all but weights", "torch-ref"]["verdict"] == "not run"  # slow, and not needed
    assert gates["states", "ort-cpu"]["measured"] < 1e-5
    assert "0 undecided" in gates["tokens", "ort-cpu"]["detail"]
    assert m.versions["onnx"] == onnx.__version__

    engine = open_engine(bundle.path, threads=1)
    ids = np.array([[5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 0, 0, 0, 0]], np.int64)
    z = engine.encode(ids, np.array([7, 3]), 5)
    assert z.shape == (2, 5, 6)
    assert not z[1, 3:].any()
    assert z[1, :3].all()
    rows = engine.adapt(z)
    assert rows.shape == (2, 7, 48)
    prompt = np.array([[256, 0, 0, 65], [256, 0, 0, 66]], np.int64)
    embeds = engine.splice(prompt, np.array([[-1, 0, 6, -1]] * 2), rows)
    np.testing.assert_array_equal(embeds[:, 1:3], rows[:, [0, 6]])
    buffers = engine.alloc(2, 8)
    engine.prefill(buffers, embeds, np.array([4, 4]))
    first = buffers.next_token.copy()
    engine.decode(buffers)
    assert first.shape == buffers.next_token.shape == (2,)
    engine.close()


def test_weights_are_shared_not_copied(bundle: Bundle) -> None:
    """The adapter and the splice read the decoder's table; no graph holds weights itself."""
    from latentwire.engines.onnx_paths import external_files

    named = {name: external_files((bundle.path / f"{name}.onnx").read_bytes()) for name in bundle.manifest.graphs}
    assert named == {
        "encoder": {"encoder.safetensors", "embeddings.safetensors"},
        "adapter": {"adapter.safetensors", "decoder.safetensors"},
        "splice": {"decoder.safetensors"},
        "decoder": {"decoder.safetensors"},
    }
    assert all((bundle.path / f"{name}.onnx").stat().st_size < 40_000 for name in named)


def refused(request: Request, kind: type[LatentWireError], code: int) -> LatentWireError:
    """The export fails with ``code`` and leaves nothing behind, visible or hidden."""
    before = {p.name for p in request.out.parent.iterdir()}
    with pytest.raises(kind) as caught:
        export_bundle(request)
    assert caught.value.code == code, caught.value
    after = {p.name for p in request.out.parent.iterdir() if not p.name.endswith(".lock")}
    assert after - {"home"} == before - {"home"}
    return caught.value


def edit_meta(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_checkpoint_without_this_llm(request_for: Request, tiny: Callable[[str], ModelFolder]) -> None:
    error = refused(replace(request_for, llm=str(tiny("qwen2").path)), ModelError, 3102)
    assert error.what == "checkpoint has no adapter for this LLM"
    assert tiny("qwen2").fingerprint[:12] in error.expected
    assert f"tiny-{KIND} {tiny(KIND).fingerprint[:12]}" in error.expected


def test_adapter_of_another_version(request_for: Request, checkpoint: Path, tiny: Callable[[str], ModelFolder]) -> None:
    def change(meta: dict[str, Any]) -> None:
        entry = meta["adapters"].pop(f"tiny-{KIND}")
        meta["adapters"][tiny(KIND).path.name] = entry | {"llm_fingerprint": "ee" * 32}

    edit_meta(checkpoint, change)
    error = refused(request_for, ModelError, 3102)
    assert error.what == "adapter belongs to another version of the LLM"


def test_encoder_on_other_embeddings(request_for: Request, checkpoint: Path) -> None:
    edit_meta(checkpoint, lambda meta: meta["encoder"].update(llm_fingerprint="ee" * 32))
    assert refused(request_for, ModelError, 3101).what == "encoder was trained on other embeddings"


@pytest.mark.parametrize("name", ["meta.json", "encoder.onnx", "encoder.safetensors", f"adapter-tiny-{KIND}.onnx"])
def test_missing_checkpoint_file(request_for: Request, checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    error = refused(request_for, ModelError, 3204)
    assert name in error.where


def test_not_a_checkpoint(request_for: Request, checkpoint: Path) -> None:
    edit_meta(checkpoint, lambda meta: meta.update(format="something"))
    refused(request_for, ModelError, 3220)


def test_incomplete_checkpoint(request_for: Request, checkpoint: Path) -> None:
    edit_meta(checkpoint, lambda meta: meta["encoder"].pop("d_z"))
    assert "d_z" in refused(request_for, ModelError, 3220).expected


def test_checkpoint_of_a_newer_version(request_for: Request, checkpoint: Path) -> None:
    edit_meta(checkpoint, lambda meta: meta.update(version=2))
    refused(request_for, ModelError, 3221)


def test_graph_with_other_inputs(request_for: Request, checkpoint: Path) -> None:
    path = checkpoint / "encoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[2].name = "pieces"
    path.write_bytes(model.SerializeToString())
    assert refused(request_for, BundleError, 4001).what == "graph has other inputs"


def test_graph_too_new(request_for: Request, checkpoint: Path) -> None:
    path = checkpoint / "encoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.opset_import[0].version = 28
    path.write_bytes(model.SerializeToString())
    assert refused(request_for, BundleError, 4001).what == "ONNX file is too new"


def test_weight_the_file_does_not_have(request_for: Request, checkpoint: Path) -> None:
    source = next(checkpoint.glob("adapter-*.safetensors"))
    shutil.copyfile(source, checkpoint / "encoder.safetensors")
    error = refused(request_for, BundleError, 4008)
    assert error.where == "down in encoder.safetensors"


def test_output_folder_in_use(request_for: Request) -> None:
    request_for.out.mkdir()
    (request_for.out / "mine.txt").write_text("keep")
    error = refused(request_for, EnvironmentFault, 5008)
    assert str(request_for.out) in error.where
    assert (request_for.out / "mine.txt").read_text() == "keep"


def test_nothing_to_compare_with(request_for: Request) -> None:
    refused(replace(request_for, reference="recorded"), BundleError, 4011)


def test_failed_parity_leaves_no_bundle(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder with a wrong scale never becomes a bundle."""
    from latentwire.export.model_config import read_llm as right

    monkeypatch.setattr("latentwire.export.parts.read_llm", lambda *a: replace(right(*a), attention_scale=0.5))
    monkeypatch.setattr(reference, "PROMPTS", 2)
    error = refused(request_for, ParityError, 4010)
    assert error.what == "parity failed at hidden.1"


def test_shipped_reference_is_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(checkpoint_module.__file__).parents[1] / "reference"
    if (shipped / "meta.json").is_file():
        assert read_checkpoint("reference").path == shipped
    else:  # a working tree before the first training run
        with pytest.raises(ModelError) as caught:
            read_checkpoint("reference")
        assert caught.value.where == str(shipped / "meta.json")


def test_command(request_for: Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``latentwire export``: JSON on stdout, one line on stderr and exit status 6 for a folder in use."""
    from typer.testing import CliRunner

    from latentwire.cli import app

    monkeypatch.setattr(reference, "PROMPTS", 2)
    arguments = [
        "export",
        request_for.checkpoint,
        "--llm",
        request_for.llm,
        "-o",
        str(request_for.out),
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["llm"]["family"] == "llama"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 6
    assert "LW-5008" in done.output
    assert "Traceback" not in done.output


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire.export import cli

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        cli.require_onnx()
    assert (caught.value.code, caught.value.fix) == (5011, "pip install 'latentwire[export]'")


def test_bad_questions_are_refused_before_any_work(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.export.export.write_llm", lambda *given: pytest.fail("work began"))
    target = choose(Wishes(precision="int8"))
    refused(replace(request_for, target=target, measure="nowhere.jsonl"), InputError, 2104)
    assert not request_for.out.exists()


def test_a_cost_is_measured_against_a_form_that_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder too has another precision: its own would hide what it loses."""
    from latentwire.engines.toy import write_toy_bundle
    from latentwire.export import cost

    bundle = write_toy_bundle(tmp_path / "toy")
    found: list[str] = []

    def write_plain(folder: Path) -> Bundle:
        found.extend(p.name for p in folder.iterdir())
        return bundle

    monkeypatch.setattr(cost, "measure_loss", lambda *given, **named: {"seen": True})
    assert cost.measured(bundle, cost.asked("demo"), write_plain) == {"precision": {"seen": True}}
    assert found == []
    assert cost.measured(bundle, cost.asked("none"), write_plain) == {}


def test_compiling_again_keeps_every_other_graph(bundle: Bundle, tmp_path: Path) -> None:
    """Optional parts, such as the wire's quantiser, stay what they are; the decoder gets its capacity."""
    from latentwire.export.recompile import copy

    graphs = {**bundle.manifest.graphs, "quantise": bundle.manifest.graphs["adapter"]}
    (tmp_path / "out").mkdir()
    source = Bundle(bundle.path, replace(bundle.manifest, graphs=graphs))
    target = choose(Wishes("tensorrt-rtx", capacity=64))
    made = copy(source, target, tmp_path / "out").manifest.graphs
    assert {k: v for k, v in made.items() if k != "decoder"} == {k: v for k, v in graphs.items() if k != "decoder"}
    assert made["decoder"].inputs[-1].dims[2] == 64
