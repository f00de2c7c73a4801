"""``latentwire export --target tensorrt-rtx``: from a checkpoint, and from a bundle that was made for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentwire.core.errors import BundleError, InputError, LatentWireError
from latentwire.engines.bundle import Bundle, read_bundle
from latentwire.export import reference
from latentwire.export.export import Request, export_bundle
from latentwire.export.plans import COMPILED
from latentwire.export.recompile import Recompile, recompile
from latentwire.export.target import Wishes, choose

pytestmark = pytest.mark.trt

GPU = ("sm_89",)
WISHES = Wishes("tensorrt-rtx", capacity=64, batch=4, length=40, gpus=GPU)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reference, "PROMPTS", 2)
    monkeypatch.setenv("LATENTWIRE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A llama whose heads TensorRT has kernels for."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 64}
    return make_tiny(tmp_path_factory.mktemp("model") / "llama", "llama-tied", **sizes)


@pytest.fixture
def request_for(model: Any, make_checkpoint: Callable[..., Path], tmp_path: Path) -> Request:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", model)
    return Request(str(checkpoint), str(model.path), tmp_path / "bundle", threads=1, verify="weights")


def check_plans(bundle: Bundle) -> None:
    m = read_bundle(bundle.path).manifest
    assert set(m.plans) == set(COMPILED)
    assert m.files.keys() >= {f"{part}.plan" for part in COMPILED}
    assert {(p.package, p.gpus, p.batch) for p in m.plans.values()} == {("tensorrt-rtx", GPU, 4)}
    assert (m.plans["decoder"].length, m.capacity, m.precision, m.flavour) == (40, 64, "fp16", "dual")
    assert m.graphs["decoder"].inputs[-1].dims[2] == 64
    assert m.plans["decoder"].audit["kv_cache_updates"] == 4


def test_from_a_checkpoint(request_for: Request) -> None:
    made = export_bundle(replace(request_for, target=choose(WISHES), verify="full"))
    check_plans(made)
    gates = made.manifest.quality["parity"]["gates"]
    assert {g["gate"] for g in gates if g["backend"] == "ort-cpu" and g["verdict"] == "passed"} >= {"logits", "tokens"}
    # Once, and after the plans were there: without a GPU for them nobody ran them, and the manifest says so.
    trt = [g for g in gates if g["backend"] == "trt"]
    assert trt
    assert all(g["detail"] != "bundle has no plans" for g in trt)


def test_from_a_bundle(request_for: Request, tmp_path: Path) -> None:
    """Same graphs, same weights; the cache gets its size, and plans come that were not there."""
    plain = export_bundle(replace(request_for, target=choose(Wishes(precision="fp16"))))
    compiled = recompile(Recompile(plain.path, tmp_path / "out", WISHES))
    check_plans(compiled)
    assert compiled.manifest.quality["parity"]["verify"] == "none"  # its model is not in the store
    same = {"decoder.safetensors", "encoder.onnx", "adapter.onnx", "splice.onnx", "tokenizer.json"}
    assert all(plain.manifest.files[name] == compiled.manifest.files[name] for name in same)
    again = recompile(Recompile(compiled.path, tmp_path / "again", replace(WISHES, capacity=None)))
    assert again.manifest.files["decoder.onnx"] == compiled.manifest.files["decoder.onnx"]


def test_no_recorded_prompt_fits(request_for: Request, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that were recorded cannot be cut; those of a reference that runs now are."""
    prompts = reference.sentence_prompts(model.tokenizer_path, (256,))
    recorded = reference.measure(model.path, model.fingerprint, prompts)
    monkeypatch.setattr("latentwire.export.parity.run_reference", lambda *a: recorded)
    with pytest.raises(BundleError) as caught:
        export_bundle(replace(request_for, target=choose(Wishes(capacity=40)), verify="full"))
    assert (caught.value.code, caught.value.what) == (4011, "no prompt of the reference fits the bundle")


@pytest.mark.parametrize(
    ("wishes", "where", "expected"),
    [
        (replace(WISHES, precision="bf16"), "--precision bf16", "has fp16"),
        (replace(WISHES, flavour="mask"), "--flavour mask", "has dual"),
    ],
)
def test_a_bundle_stays_what_it_is(
    wishes: Wishes, where: str, expected: str, request_for: Request, tmp_path: Path
) -> None:
    plain = export_bundle(replace(request_for, target=choose(Wishes(precision="fp16"))))
    with pytest.raises(InputError) as caught:
        recompile(Recompile(plain.path, tmp_path / "out", wishes))
    assert (caught.value.code, caught.value.where) == (2111, where)
    assert expected in caught.value.expected
    assert not (tmp_path / "out").exists()


def test_a_float32_bundle_has_no_plan(request_for: Request, tmp_path: Path) -> None:
    plain = export_bundle(request_for)
    with pytest.raises(LatentWireError, match="LW-2111"):
        recompile(Recompile(plain.path, tmp_path / "out", WISHES))


def test_command(request_for: Request) -> None:
    """A GPU that cannot be compiled for is refused before the model is read; a good one makes a table."""
    from latentwire.cli import app

    common = ["export", request_for.checkpoint, "--llm", request_for.llm, "-o", str(request_for.out)]
    common += ["--target", "tensorrt-rtx", "--verify", "weights", "--capacity", "64", "--batch", "2", "--quiet"]
    refused = CliRunner().invoke(app, [*common, "--gpu", "sm_90"])
    assert refused.exit_code == 5
    assert "LW-2111" in refused.output
    assert not request_for.out.exists()
    done = CliRunner().invoke(app, [*common, "--gpu", "sm_89,sm_120"])
    assert done.exit_code == 0, done.output
    assert "sm_89, sm_120" in done.output
    assert "decoder.plan" in done.output
