"""Planted faults: each kind is caught by a named gate, with the tensor that departs first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from latentwire.engines.bundle import Bundle
from latentwire.export.parity import ParityError, Reference, check_greedy, check_states, check_weights, gate
from latentwire.export.recorded import Recorded, read_recorded, shrink, to_json
from latentwire.models.folder import ModelFolder

KIND = "llama"
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
            helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array([1], np.int64))),
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


@pytest.mark.parametrize(
    ("plant", "stage"),
    [
        (dropped_lengths, "one step from the cache"),
        (upper_left, "one step from the cache"),
        (late_write, "whole prompts"),
        (late_position, "whole prompts"),
        (not_causal, "whole prompts"),
    ],
)
def test_graph_fault_is_caught(plant: Plant, stage: str, broken: Bundle, measured: Callable[[str], Recorded]) -> None:
    """The first layer's output departs, in the stage that shows the fault; greedy tokens alone show it too."""
    change_graph(broken, plant)
    recorded = measured(KIND)
    with pytest.raises(ParityError) as caught:
        check_states(broken, recorded, 1)
    assert (caught.value.code, caught.value.tensor, caught.value.where) == (4010, "hidden.1", stage)
    with pytest.raises(ParityError) as caught:
        check_greedy(broken, recorded, 1)
    assert caught.value.tensor == "next_token"


def test_wrong_weight_is_caught(
    broken: Bundle, tiny: Callable[[str], ModelFolder], measured: Callable[[str], Recorded]
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
    assert (caught.value.code, caught.value.tensor) == (4010, "layer.1.gate")
    with pytest.raises(ParityError) as caught:
        check_states(broken, measured(KIND), 1)
    assert caught.value.tensor == "hidden.2"
    assert str(caught.value).startswith("LW-4010 parity failed at hidden.2; whole prompts; expected relative L2")


def test_write_outside_the_cache_is_caught(tiny_decoder: Callable[[str], Bundle]) -> None:
    from latentwire.core.errors import LatentError
    from latentwire.engines.ort import OrtCpuEngine

    buffers = OrtCpuEngine(tiny_decoder(KIND), threads=1).alloc(2, 8)
    buffers.check_guards()
    buffers.memory["past_v.1"][-1] = 0
    with pytest.raises(LatentError) as caught:
        buffers.check_guards()
    assert (caught.value.code, caught.value.where) == (3002, "tensor past_v.1")


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
    report = gate(tiny_decoder(KIND), tiny(KIND), Reference(path), threads=1)
    assert report["prompts"] == len(small.prompts)
    assert report["undecided_prompts"] == 0
    change_graph(broken, late_position)
    with pytest.raises(ParityError, match=r"hidden\.1"):
        gate(broken, tiny(KIND), Reference(path), threads=1)


def test_undecided_reference_is_no_failure(
    tiny_decoder: Callable[[str], Bundle], measured: Callable[[str], Recorded]
) -> None:
    """A token is compared only where the reference itself had a clear choice; the rest is counted."""
    from dataclasses import replace

    recorded = measured(KIND)
    tokens, margins = recorded.tokens.copy(), recorded.margins.copy()
    tokens[4, 2] = (tokens[4, 2] + 1) % 258
    margins[4, 2] = 1e-4
    doubtful = replace(recorded, tokens=tokens, margins=margins)
    assert check_greedy(tiny_decoder(KIND), doubtful, 1)["undecided_prompts"] == 1
