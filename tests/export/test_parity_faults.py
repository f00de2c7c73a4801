"""Planted faults: each kind is caught by a named gate, with the tensor that departs first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import Bundle
from latentwire.export.backends import Backend, backends
from latentwire.export.findings import Finding, ParityError
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend, verify
from latentwire.export.recorded import Recorded, read_recorded, shrink, to_json
from latentwire.export.yardstick import Reference
from latentwire.models.folder import ModelFolder

KIND = "llama"
BACKENDS = ["ort-cpu", "torch-ref"]
Plant = Callable[[onnx.ModelProto], None]


@pytest.fixture
def broken(tmp_path: Path, tiny_decoder: Callable[[str], Bundle]) -> Bundle:
    """A copy of a good bundle, to be broken."""
    good = tiny_decoder(KIND)
    folder = tmp_path / "broken"
    shutil.copytree(good.path, folder)
    return Bundle(folder, good.manifest)


def change_graph(bundle: Bundle, plant: Plant) -> None:
    path = bundle.path / "decoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    plant(model)
    path.write_bytes(model.SerializeToString())


def dropped_lengths(model: onnx.ModelProto) -> None:
    """Attention without key/value lengths: what a parser that ignores the input would compute."""
    node = next(n for n in model.functions[0].node if n.op_type == "Attention")
    del node.input[3:]


def upper_left(model: onnx.ModelProto) -> None:
    """Causal from the first slot on: query i sees slots 0..i, wherever the row stands in the cache."""
    model.functions[0].ClearField("node")
    model.functions[0].node.extend(
        [
            helper.make_node("Shape", ["Q"], ["s"], start=2, end=3),
            helper.make_node("Shape", ["K"], ["c"], start=2, end=3),
            helper.make_node("Concat", ["s", "c"], ["sc"], axis=0),
            helper.make_node("Equal", ["s", "s"], ["same"]),
            helper.make_node("Cast", ["same"], ["true"], to=onnx.TensorProto.INT64),
            helper.make_node("Expand", ["true", "sc"], ["ones"]),
            helper.make_node("Trilu", ["ones"], ["triangle"], upper=0),
            helper.make_node("Cast", ["triangle"], ["seen"], to=onnx.TensorProto.BOOL),
            helper.make_node("Attention", ["Q", "K", "V", "seen"], ["Y"], scale=1.0),
        ]
    )


def late_write(model: onnx.ModelProto) -> None:
    """Every write one slot too far."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "planted.one"))
    model.graph.node.insert(0, helper.make_node("Add", ["write_indices", "planted.one"], ["late"]))
    for node in model.graph.node:
        if node.op_type == "TensorScatter":
            node.input[2] = "late"


def late_position(model: onnx.ModelProto) -> None:
    """Keys rotated one position too far; queries are not."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "planted.one"))
    model.graph.node.insert(0, helper.make_node("Add", ["position_ids", "planted.one"], ["late"]))
    seconds = [n for n in model.graph.node if n.op_type == "RotaryEmbedding"][1::2]
    for node in seconds:
        node.input[3] = "late"


def not_causal(model: onnx.ModelProto) -> None:
    """Every query sees the whole prompt."""
    node = next(n for n in model.functions[0].node if n.op_type == "Attention")
    next(a for a in node.attribute if a.name == "is_causal").i = 0


def one_backend(bundle: Bundle, name: str) -> Backend:
    (found,), absent = backends(bundle, 1, [name])
    assert absent == []
    return found


def all_gates(bundle: Bundle, name: str, recorded: Recorded) -> dict[str, Finding]:
    """Every gate, whether or not an earlier one failed."""
    return {f.gate: f for f in check_backend(one_backend(bundle, name), bundle, recorded, stop=False)}


def failed(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict == "failed"}


FAULTS: list[tuple[Plant, str, set[str]]] = [
    (dropped_lengths, "cached states", {"tokens", "steps"}),
    (upper_left, "cached states", {"tokens", "steps"}),
    (late_write, "states", {"cached states", "logits", "tokens", "cache"}),
    (late_position, "states", {"cached states", "logits", "tokens"}),
    (not_causal, "states", {"logits", "tokens", "batch", "padding"}),
]
"""Fault, the first gate that it fails, and others that it fails too."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("plant", "first", "more"), FAULTS)
def test_graph_fault_is_caught(
    plant: Plant, first: str, more: set[str], backend: str, broken: Bundle, measured: Callable[[str], Recorded]
) -> None:
    """The first layer departs, in the first gate that can show the fault; gates without a reference show it too."""
    change_graph(broken, plant)
    recorded = measured(KIND)
    with pytest.raises(ParityError) as caught:
        check_backend(one_backend(broken, backend), broken, recorded)
    error = caught.value
    assert (error.code, error.tensor, error.finding.gate, error.finding.backend) == (4010, "hidden.1", first, backend)
    assert str(error).startswith(f"LW-4010 parity failed at hidden.1; gate {first} on {backend}; max abs ")
    found = all_gates(broken, backend, recorded)
    print(plant.__name__, backend, {n: f.detail for n, f in found.items() if f.verdict == "failed"})
    assert failed(found) >= {first, *more}
    assert all(
        f.detail.startswith("hidden.1: ")
        for f in found.values()
        if f.gate in ("steps", "batch", "padding") and f.verdict == "failed"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_weight_is_caught(
    backend: str, broken: Bundle, tiny: Callable[[str], ModelFolder], measured: Callable[[str], Recorded]
) -> None:
    """One value of one matrix, found by value and by its effect."""
    from latentwire.export.external import read_layout

    path = broken.path / "decoder.safetensors"
    place = read_layout(path).places["layer.1.gate"]
    data = bytearray(path.read_bytes())
    data[place.offset : place.offset + 4] = np.float32(3.0).tobytes()
    path.write_bytes(data)
    with pytest.raises(ParityError) as caught:
        check_weights(broken, tiny(KIND))
    assert (caught.value.code, caught.value.tensor, caught.value.finding.gate) == (4010, "layer.1.gate", "weights")
    with pytest.raises(ParityError) as caught:
        check_backend(one_backend(broken, backend), broken, measured(KIND))
    assert (caught.value.tensor, caught.value.finding.gate) == ("hidden.2", "states")
    assert failed(all_gates(broken, backend, measured(KIND))) >= {"states", "cached states", "logits"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_cache_that_is_not_written_in_place_is_caught(
    backend: str,
    tiny_decoder: Callable[[str], Bundle],
    measured: Callable[[str], Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that gives ``present`` memory of its own: the gate on the cache names the first tensor."""
    from latentwire.engines.ort import OrtBuffers, OrtCpuEngine
    from latentwire.engines.torch_ref import TorchRefEngine

    bundle = tiny_decoder(KIND)
    bind, alloc = OrtCpuEngine._bind, TorchRefEngine.alloc

    def bind_apart(self: OrtCpuEngine, buffers: OrtBuffers) -> None:
        bind(self, buffers)
        for name in buffers.cache:
            buffers.binding.bind_output(name.replace("past", "present"), "cpu")

    def alloc_apart(self: TorchRefEngine, batch: int, capacity: int) -> object:
        buffers = alloc(self, batch, capacity)
        buffers.present = {name: tensor.clone() for name, tensor in buffers.present.items()}
        return buffers

    monkeypatch.setattr(OrtCpuEngine, "_bind", bind_apart)
    monkeypatch.setattr(TorchRefEngine, "alloc", alloc_apart)
    found = all_gates(bundle, backend, measured(KIND))
    assert failed(found) >= {"cached states", "tokens", "steps", "cache"}
    assert found["cache"].detail.startswith("past_k.0: row 0, ")
    assert found["states"].verdict == "passed"  # a whole prompt needs no cache


@pytest.mark.parametrize("backend", BACKENDS)
def test_write_outside_the_cache_is_caught(
    backend: str,
    tiny_decoder: Callable[[str], Bundle],
    measured: Callable[[str], Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that writes one element too far."""
    from latentwire.engines.ort import OrtCpuEngine
    from latentwire.engines.torch_ref import TorchRefEngine

    for engine in (OrtCpuEngine, TorchRefEngine):
        prefill = engine.prefill

        def too_far(self: object, buffers: Buffers, *args: object, prefill: Callable[..., None] = prefill) -> None:
            prefill(self, buffers, *args)
            buffers.memory["past_v.1"][-1] = 0

        monkeypatch.setattr(engine, "prefill", too_far)
    found = all_gates(tiny_decoder(KIND), backend, measured(KIND))
    assert found["cache"].verdict == "failed"
    assert found["cache"].detail == "past_v.1: something wrote outside the key/value cache"


@pytest.mark.parametrize("backend", BACKENDS)
def test_stale_cache_is_caught(
    backend: str,
    tiny_decoder: Callable[[str], Bundle],
    measured: Callable[[str], Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that keeps the key and value lengths of the batch before: its slots stay visible."""
    from latentwire.engines import ort, torch_ref
    from latentwire.engines.buffers import decoder_inputs

    seen: list[tuple[np.ndarray, int]] = []  # arrays are kept, so that no address is used twice

    def stale(written: np.ndarray, embeds: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        given = decoder_inputs(written, embeds, lengths)
        owner = written if written.base is None else written.base
        if not written.any():
            most = max((n for array, n in seen if array is owner), default=0)
            given["kv_lengths"] = np.maximum(given["kv_lengths"], np.int32(most))
        seen.append((owner, int(given["kv_lengths"].max())))
        return given

    monkeypatch.setattr(ort, "decoder_inputs", stale)
    monkeypatch.setattr(torch_ref, "decoder_inputs", stale)
    assert failed(all_gates(tiny_decoder(KIND), backend, measured(KIND))) == {"reuse", "refill"}


def test_recorded_run_serves_instead(
    tmp_path: Path,
    broken: Bundle,
    tiny: Callable[[str], ModelFolder],
    tiny_decoder: Callable[[str], Bundle],
    measured: Callable[[str], Recorded],
) -> None:
    """A small file written earlier passes a good bundle and stops a broken one."""
    import json

    small = shrink(measured(KIND), clear=0.02, probes=2, channels=16, logits=40)
    assert 20 < len(small.prompts) < len(measured(KIND).prompts) + 1
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(to_json(small)), encoding="utf-8")
    np.testing.assert_allclose(read_recorded(path).hidden, small.hidden, rtol=1e-6)
    report = verify(tiny_decoder(KIND), tiny(KIND), Reference(path), threads=1)
    assert report.source.startswith("a recorded run of transformers ")
    assert report.failed == []
    tokens = next(f for f in report.findings if f.gate == "tokens")
    assert tokens.detail == f"{len(small.prompts)} prompts, {8 * len(small.prompts)} choices, 0 other, 0 undecided"
    change_graph(broken, late_position)
    with pytest.raises(ParityError, match=r"hidden\.1"):
        verify(broken, tiny(KIND), Reference(path), threads=1)


def test_undecided_reference_is_no_failure(
    tiny_decoder: Callable[[str], Bundle], measured: Callable[[str], Recorded]
) -> None:
    """A token is compared only where the reference itself had a clear choice; the rest is counted."""
    from dataclasses import replace

    recorded = measured(KIND)
    tokens, margins = recorded.tokens.copy(), recorded.margins.copy()
    tokens[4, 2] = (tokens[4, 2] + 1) % 258
    doubtful = replace(recorded, tokens=tokens, margins=margins)
    assert failed(all_gates(tiny_decoder(KIND), "ort-cpu", doubtful)) == {"tokens"}
    margins[4, 2] = 1e-4
    found = all_gates(tiny_decoder(KIND), "ort-cpu", doubtful)["tokens"]
    assert (found.verdict, found.detail.rsplit(", ", 1)[1]) == ("passed", "1 undecided")


def test_verify_can_do_less(
    broken: Bundle, tiny: Callable[[str], ModelFolder], measured: Callable[[str], Recorded]
) -> None:
    """``weights`` compares files and runs no model; ``none`` does nothing, and says so."""
    change_graph(broken, late_position)
    report = verify(broken, tiny(KIND), None, "weights")
    assert [(f.gate, f.verdict) for f in report.findings] == [("weights", "passed")]
    assert verify(broken, tiny(KIND), None, "none").to_json() == {"verify": "none", "gates": []}
