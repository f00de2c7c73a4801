"""The three flavours of attention compute one thing, in place, and a fault in any of them is caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from latentwire.core.errors import ModelError
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.attention import FLAVOURS
from latentwire.export.backends import Backend, backends
from latentwire.export.drive import run
from latentwire.export.findings import ParityError
from latentwire.export.parity import check_backend
from latentwire.export.recorded import Recorded
from latentwire.models.folder import ModelFolder

from .test_decoder import KINDS

Make = Callable[[str, str], Bundle]


@pytest.fixture(scope="session")
def wide(
    make_tiny: Callable[..., ModelFolder], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ModelFolder]:
    """``wide(kind)``: tiny models whose head size every flavour takes."""
    made: dict[str, ModelFolder] = {}

    def make(kind: str) -> ModelFolder:
        if kind not in made:
            made[kind] = make_tiny(tmp_path_factory.mktemp("wide") / kind, kind, head_dim=16)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def bundle(
    wide: Callable[[str], ModelFolder], make_precise: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """``bundle(kind, flavour, precision)``: decoder and splice, made once."""
    made: dict[tuple[str, ...], Bundle] = {}

    def make(*key: str) -> Bundle:
        if key not in made:
            kind, flavour, form = key
            folder = tmp_path_factory.mktemp("flavours") / "bundle"
            made[key] = make_precise(folder, wide(kind), form, flavour, 64 if flavour == "mask" else "C")
        return made[key]

    return make


@pytest.fixture(scope="session")
def truth(wide: Callable[[str], ModelFolder], byte_prompts: list[list[int]]) -> Callable[[str], Recorded]:
    """``truth(kind)``: what transformers answers, once."""
    from latentwire.export.reference import measure

    made: dict[str, Recorded] = {}

    def make(kind: str) -> Recorded:
        if kind not in made:
            llm = wide(kind)
            made[kind] = measure(llm.path, llm.fingerprint, byte_prompts[:30], new=6, probes=3)
        return made[kind]

    return make


def on_cpu(bundle: Bundle) -> Backend:
    (found,), _ = backends(bundle, 1, ["ort-cpu"])
    return found


@pytest.mark.parametrize("flavour", ["mask", "gqa"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_flavour_equals_transformers(
    kind: str, flavour: str, bundle: Callable[..., Bundle], truth: Callable[[str], Recorded]
) -> None:
    """Every gate, from layers to guard words; test_decoder has ``dual``."""
    made = bundle(kind, flavour, "fp32")
    found = check_backend(on_cpu(made), made, truth(kind))
    assert {f.verdict for f in found} == {"passed"}


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", ["llama-3.1", "gemma3"])
def test_flavours_equal_each_other(
    kind: str, form: str, bundle: Callable[..., Bundle], byte_prompts: list[list[int]]
) -> None:
    """Logits of a ragged prefill and of the steps after it; sums are taken in another order, no more."""
    logits = {}
    for flavour in FLAVOURS:
        engine = OrtCpuEngine(bundle(kind, flavour, form), threads=1)
        logits[flavour] = run(engine, byte_prompts[:12], 4).logits
    scale = np.linalg.norm(logits["dual"])
    for flavour in ("mask", "gqa"):
        apart = np.linalg.norm(logits[flavour] - logits["dual"]) / scale
        print(f"{kind} {form} {flavour}: {apart:.2g} of the logits' length")
        assert apart < {"fp32": 3e-6, "fp16": 3e-3, "int8": 3e-2}[form]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_prompt_may_come_in_chunks(
    flavour: str, bundle: Callable[..., Bundle], capfd: pytest.CaptureFixture[str]
) -> None:
    """Nine positions as 9, as 5 + 3 + 1 and one by one leave the same cache and logits, in place."""
    made = bundle("llama-3.1", flavour, "fp32")
    engine = OrtCpuEngine(made, threads=1)
    x = np.random.default_rng(0).standard_normal((1, 9, 48)).astype(np.float32)
    found = []
    for cut in ([9], [5, 3, 1], [1] * 9):
        buffers = engine.alloc(1, 64)
        buffers.lengths[:] = 0
        at = 0
        for size in cut:
            engine._step(buffers, x[:, at : at + size], np.array([size]))
            at += size
        buffers.check_guards()
        found.append((buffers.logits.copy(), buffers.cache["past_k.2"][:, :, :9].copy()))
    for logits, cache in found[1:]:
        np.testing.assert_allclose(logits, found[0][0], atol=2e-5)
        np.testing.assert_allclose(cache, found[0][1], atol=2e-5)
    assert "in-place" not in capfd.readouterr().err


def test_head_size_that_gqa_does_not_take(
    tmp_path: Path, tiny: Callable[[str], ModelFolder], make_precise: Callable[..., Bundle]
) -> None:
    with pytest.raises(ModelError, match="head size 12 does not go with the flavour gqa") as caught:
        make_precise(tmp_path / "b", tiny("llama"), "fp32", "gqa")
    assert caught.value.code == 3203


def one(model: onnx.ModelProto, dtype: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype), "planted.one"))
    return "planted.one"


def rewire(model: onnx.ModelProto, output: str, instead: str, *op_types: str) -> None:
    """Readers of ``output`` read ``instead``."""
    for node in model.graph.node:
        if node.op_type in op_types:
            node.input[:] = [instead if name == output else name for name in node.input]


def late_write(model: onnx.ModelProto) -> None:
    """Every write one slot too far; gqa writes a whole prompt at slot 0 whatever the lengths say."""
    if any(n.op_type == "GroupQueryAttention" for n in model.graph.node):
        # It writes below the length that it is told.
        rewire(model, "gqa.last", "kv_lengths", "GroupQueryAttention")
        return
    node = onnx.helper.make_node("Add", ["write_indices", one(model, np.int64)], ["late"])
    model.graph.node.insert(0, node)
    rewire(model, "write_indices", "late", "TensorScatter")


def upper_left(model: onnx.ModelProto) -> None:
    """Mask: query i sees slots 0..i, wherever its row stands in the cache."""
    nodes = [
        onnx.helper.make_node("Shape", ["position_ids"], ["planted.size"], start=1, end=2),
        onnx.helper.make_node("Squeeze", ["planted.size"], ["planted.s"]),
        onnx.helper.make_node("Range", ["planted.zero", "planted.s", one(model, np.int64)], ["planted.i"]),
        onnx.helper.make_node("Expand", ["planted.i", "planted.shape"], ["planted.all"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "planted.zero"))
    nodes.insert(0, onnx.helper.make_node("Shape", ["position_ids"], ["planted.shape"]))
    for i, node in enumerate(nodes):
        model.graph.node.insert(i, node)
    rewire(model, "position_ids", "planted.all", "Unsqueeze")


def no_mask(model: onnx.ModelProto) -> None:
    """Mask: every query sees every slot."""
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def one_length(model: onnx.ModelProto) -> None:
    """Gqa: every row as long as the longest."""
    nodes = [
        onnx.helper.make_node("Shape", ["kv_lengths"], ["planted.shape"]),
        onnx.helper.make_node("Sub", ["gqa.total", one(model, np.int32)], ["planted.last"]),
        onnx.helper.make_node("Expand", ["planted.last", "planted.shape"], ["planted.rows"]),
    ]
    at = 1 + next(i for i, n in enumerate(model.graph.node) if n.output[0] == "gqa.total")
    for i, node in enumerate(nodes):
        model.graph.node.insert(at + i, node)
    rewire(model, "gqa.last", "planted.rows", "GroupQueryAttention")


@pytest.mark.parametrize(
    ("flavour", "plant", "first"),
    [
        ("mask", late_write, "states"),
        ("mask", upper_left, "cached states"),
        ("mask", no_mask, "states"),
        ("gqa", late_write, "cached states"),
        ("gqa", one_length, "cached states"),
    ],
)
def test_fault_in_a_flavour_is_caught(
    flavour: str,
    plant: Callable[[onnx.ModelProto], None],
    first: str,
    tmp_path: Path,
    bundle: Callable[..., Bundle],
    truth: Callable[[str], Recorded],
) -> None:
    """Faults of ``dual`` are planted in test_parity_faults; those of the others here."""
    good = bundle("llama", flavour, "fp32")
    folder = tmp_path / "broken"
    shutil.copytree(good.path, folder)
    model = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
    plant(model)
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    broken = Bundle(folder, good.manifest)
    with pytest.raises(ParityError) as caught:
        check_backend(on_cpu(broken), broken, truth("llama"))
    assert (caught.value.code, caught.value.finding.gate) == (4010, first), caught.value
