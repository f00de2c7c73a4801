"""Every precision passes its gates on a good bundle, and a wrong weight in each form is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from latentwire.engines.bundle import Bundle
from latentwire.export.backends import backends, running
from latentwire.export.drive import SLACK
from latentwire.export.external import read_layout
from latentwire.export.findings import ParityError
from latentwire.export.gate_same import PAD, STEPS
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend
from latentwire.export.recorded import Recorded
from latentwire.export.reference import measure
from latentwire.models.folder import ModelFolder

FORMS = {
    "fp32": {"ort-cpu", "torch-ref"},
    "fp16": {"ort-cpu", "torch-ref"},
    "bf16": {"torch-ref"},
    "int8": {"ort-cpu"},
    "w8": {"ort-cpu"},
    "w4": {"ort-cpu"},
}
"""Precision -> backends of a machine without a GPU."""


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def subject(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny: Callable[..., ModelFolder],
    byte_prompts: list[list[int]],
) -> tuple[ModelFolder, Recorded]:
    """A calmer model than the others: with their large random weights, 4 bits a weight leave no choice as it was."""
    llm = make_tiny(tmp_path_factory.mktemp("calm") / request.param, request.param, initializer_range=0.1)
    return llm, measure(llm.path, llm.fingerprint, byte_prompts, new=8, probes=5)


@pytest.mark.parametrize("form", FORMS)
def test_all_gates_pass(
    form: str, subject: tuple[ModelFolder, Recorded], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    llm, recorded = subject
    bundle = make_precise(tmp_path / form, llm, form)
    print(check_weights(bundle, llm))
    there, absent = backends(bundle, 1)
    assert {b.name for b in there} - {"ort-cuda"} == FORMS[form]
    assert {f.backend for f in absent} | {b.name for b in there} >= {"ort-cpu", "ort-cuda", "torch-ref"}
    for backend in there:
        for finding in check_backend(backend, bundle, recorded, stop=False):
            print(finding)
            assert finding.verdict == "passed", finding


@pytest.mark.parametrize("form", ["mask", "gqa"])
def test_flavours_pass_the_same_gates(
    form: str, subject: tuple[ModelFolder, Recorded], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    llm, recorded = subject
    if form == "gqa" and "llama" in llm.name:
        pytest.skip("head size 12: GroupQueryAttention takes multiples of 8")
    bundle = make_precise(tmp_path / form, llm, "fp32", form)
    for backend in backends(bundle, 1)[0]:
        findings = check_backend(backend, bundle, recorded)
        assert all(f.verdict == "passed" for f in findings)


def test_fixed_capacity_passes_and_leaves_out_what_does_not_fit(
    subject: tuple[ModelFolder, Recorded], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    llm, recorded = subject
    bundle = make_precise(tmp_path / "fixed", llm, "fp32", "dual", 40)
    (backend,), _ = backends(bundle, 1, ["ort-cpu"])
    found = {f.gate: f for f in check_backend(backend, bundle, recorded)}
    fit = [p for p in recorded.prompts if len(p) <= 40 - 8 - PAD - STEPS - SLACK]
    assert 0 < len(fit) < len(recorded.prompts)
    assert found["tokens"].detail.startswith(f"{len(fit)} prompts, ")
    assert {f.verdict for f in found.values()} == {"passed"}


def test_slow_engine_runs_only_where_it_must(
    subject: tuple[ModelFolder, Recorded], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    llm, _ = subject
    half, bf16 = (make_precise(tmp_path / form, llm, form) for form in ("fp16", "bf16"))
    there, absent = running(half, 1, quick=True)
    assert "torch-ref" not in {b.name for b in there}
    assert "torch-ref" in {f.backend for f in absent}
    assert [b.name for b in running(bf16, 1, quick=True)[0] if b.name != "ort-cuda"] == ["torch-ref"]


@pytest.mark.parametrize(
    ("form", "part", "tensor"),
    [
        ("fp16", "layer.1.down", "layer.1.down"),
        ("int8", "layer.1.down.int8", "layer.1.down"),
        ("int8", "layer.1.down.scale", "layer.1.down.scale"),
        ("w8", "layer.1.down.blocks", "layer.1.down"),
        ("w4", "layer.1.down.blocks", "layer.1.down"),
        ("w4", "layer.1.down.scale", "layer.1.down.scale"),
        ("int8", "llm.head.int8", "llm.head"),
        ("int8", "layer.2.mlp_norm", "layer.2.mlp_norm"),
        ("int8", "llm.embedding", "llm.embedding"),
    ],
)
def test_wrong_weight_is_named(
    form: str,
    part: str,
    tensor: str,
    make_tiny: Callable[..., ModelFolder],
    make_precise: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    """The third byte of the second element, flipped where the file keeps it; a scale is made twice as wide."""
    llm = make_tiny(tmp_path / "llm", "llama")
    bundle = make_precise(tmp_path / "bundle", llm, form)
    check_weights(bundle, llm)
    path = bundle.path / "decoder.safetensors"
    place = read_layout(path).places[part]
    data = bytearray(path.read_bytes())
    if part.endswith(".scale"):
        scale = np.frombuffer(data, np.float32, 1, place.offset) * np.float32(2)
        data[place.offset : place.offset + 4] = scale.tobytes()
    else:
        data[place.offset + 3] ^= 0x60
    path.write_bytes(data)
    with pytest.raises(ParityError) as caught:
        check_weights(bundle, llm)
    assert (caught.value.finding.gate, caught.value.tensor) == ("weights", tensor)


@pytest.mark.parametrize("form", ["fp16", "int8", "w4"])
def test_wide_limits_still_catch_a_wrong_graph(
    form: str, subject: tuple[ModelFolder, Recorded], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Lengths dropped from attention: each step sees the first slot only."""
    llm, recorded = subject
    bundle = make_precise(tmp_path / form, llm, form)
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    del next(n for n in model.functions[0].node if n.op_type == "Attention").input[3:]
    (bundle.path / "decoder.onnx").write_bytes(model.SerializeToString())
    (backend,), _ = backends(bundle, 1, ["ort-cpu"])
    found = {f.gate: f for f in check_backend(backend, bundle, recorded, stop=False)}
    assert found["steps"].verdict == "failed"
    assert found["steps"].detail.startswith("hidden.1: ")
    assert found["states"].verdict == "passed"  # a whole prompt needs no lengths


def test_weights_of_another_form_are_refused(
    make_tiny: Callable[..., ModelFolder], make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Rounded to float16 is not the model in float32."""
    llm = make_tiny(tmp_path / "llm", "llama")
    bundle = make_precise(tmp_path / "bundle", llm, "fp16")
    wrong = Bundle(bundle.path, replace(bundle.manifest, precision="fp32"))
    with pytest.raises(ParityError, match=r"expected F32 \[258, 48\], got F16 \[258, 48\]"):
        check_weights(wrong, llm)
