"""Precisions: the plain ones differ in dtype only, the quantised ones stay near, and no row sees its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from latentwire.core.errors import BundleError
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine, open_session
from latentwire.export.drive import greedy, prefilled, run
from latentwire.export.graph import ELEMENT_TYPES
from latentwire.models.folder import ModelFolder

Precise = Callable[..., Bundle]
KINDS = ["llama-tied", "qwen2", "gemma3"]
ON_CPU = ["fp16", "int8", "w8", "w4", "fp8"]


def skeleton(bundle: Bundle, name: str) -> tuple[Any, ...]:
    """Everything of a graph but its dtypes: nodes, names, edges, attributes, shapes, constants' values."""
    model = onnx.load(str(bundle.path / name), load_external_data=False)
    floats = {ELEMENT_TYPES[n] for n in ("float32", "float16", "bfloat16")}

    def attributes(node: onnx.NodeProto) -> list[tuple[str, Any]]:
        found = [(a.name, onnx.helper.get_attribute_value(a)) for a in node.attribute]
        return [(n, "float" if node.op_type == "Cast" and v in floats else v) for n, v in found]

    nodes = [(n.op_type, n.domain, list(n.input), list(n.output), attributes(n)) for n in model.graph.node]
    tensors = {
        i.name: (list(i.dims), "float" if i.data_type in floats else i.data_type) for i in model.graph.initializer
    }
    ends = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    return nodes, tensors, ends, [f.SerializeToString() for f in model.functions]


@pytest.mark.parametrize("flavour", ["dual", "mask"])
@pytest.mark.parametrize("kind", ["llama-tied", "gemma3"])
def test_three_dtypes_differ_in_dtype_only(kind: str, flavour: str, precise: Precise) -> None:
    """What is verified of the file that the CPU runs holds for the one that only a GPU runs."""
    made = [precise(kind, form, flavour, 64) for form in ("fp32", "fp16", "bf16")]
    for name in ("decoder.onnx", "splice.onnx"):
        first, *others = (skeleton(bundle, name) for bundle in made)
        assert all(other == first for other in others)
    for bundle in made:
        onnx.checker.check_model(str(bundle.path / "decoder.onnx"), full_check=True)
        model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
        want = ELEMENT_TYPES[bundle.manifest.llm.dtype]
        external = {i.data_type for i in model.graph.initializer if i.external_data}
        caches = {v.type.tensor_type.elem_type for v in model.graph.input if v.name.startswith("past_")}
        assert external == caches == {want}
    for bundle in made[:2]:  # ONNX Runtime has no bfloat16 kernels on the CPU
        open_session(bundle.path / "decoder.onnx", 1)


def test_a_weight_of_another_dtype_would_show(precise: Precise) -> None:
    """The comparison above sees a node too many and a changed attribute."""
    bundle = precise("llama-tied", "fp32", "dual", 64)
    nodes = skeleton(bundle, "decoder.onnx")[0]
    assert len(nodes) > 50
    assert any(n[0] == "Cast" and ("to", "float") in n[4] for n in nodes)
    assert skeleton(bundle, "decoder.onnx") != skeleton(precise("llama-tied", "fp16", "mask", 64), "decoder.onnx")


LIMITS = {"fp16": 4e-3, "int8": 0.1, "w8": 0.08, "w4": 0.9, "fp8": 0.35}
"""Logits' relative L2 from float32, with random weights, whose values a format of few bits fits worst."""


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_stay_near_float32(kind: str, form: str, precise: Precise, byte_prompts: list[list[int]]) -> None:
    both = [prefilled(OrtCpuEngine(precise(kind, n), threads=1), byte_prompts[:24], 2).logits for n in ("fp32", form)]
    apart = np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0])
    print(f"{kind} {form}: {apart:.4f} of the logits' length, limit {LIMITS[form]}")
    # Not equal either: the matrices really are quantised.
    assert LIMITS[form] / 20 < apart < LIMITS[form]


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_sees_its_neighbours(kind: str, form: str, precise: Precise, byte_prompts: list[list[int]]) -> None:
    """A row beside one that is a thousand times louder: one scale for the batch would round the quiet one away."""
    engine = OrtCpuEngine(precise(kind, form), threads=1)
    x = np.random.default_rng(1).standard_normal((3, 7, 48)).astype(np.float32)
    loud = x.copy()
    loud[1:] *= 1000
    found = []
    for given in (x, loud, x[:1]):
        buffers = engine.alloc(len(given), 16)
        engine.prefill(buffers, given, np.full(len(given), 7))
        engine.decode(buffers)
        found.append(buffers.logits[0].copy())
    scale = np.abs(found[0]).max()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-3 * scale if form in ("fp16", "fp8") else 1e-5 * scale)
    together = greedy(engine, byte_prompts[:16], 4)
    alone = np.concatenate([greedy(engine, [p], 4) for p in byte_prompts[:16]])
    assert (together == alone).mean() == 1.0 if form in ("int8", "w8", "w4") else (together == alone).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_int8_row_is_bit_for_bit_the_same_alone(kind: str, precise: Precise, byte_prompts: list[list[int]]) -> None:
    """Beside longer and shorter prompts, padded and in a larger cache: sums of integers have no order."""
    engine = OrtCpuEngine(precise(kind, "int8"), threads=1)
    together = run(engine, byte_prompts[:12], 4)
    for b, prompt in enumerate(byte_prompts[:12]):
        assert run(engine, [prompt], 4).logits[:, 0].tobytes() == together.logits[:, b].tobytes()


def test_row_of_zeros(precise: Precise) -> None:
    """Nothing to scale by: the row's products are zero, not NaN."""
    engine = OrtCpuEngine(precise("llama-tied", "int8"), threads=1)
    buffers = engine.alloc(2, 8)
    x = np.zeros((2, 3, 48), np.float32)
    x[1] = 1
    engine.prefill(buffers, x, np.array([3, 3]))
    assert (buffers.logits[0] == 0).all()
    assert np.isfinite(buffers.logits[1]).all()


@pytest.mark.parametrize("form", ["int8", "w8", "w4"])
def test_tied_head_is_stored_beside_its_table(form: str, precise: Precise) -> None:
    """The float table for rows, in half the size; the head a second time, quantised."""
    with safe_open(precise("llama-tied", form).path / "decoder.safetensors", "numpy") as file:
        names = set(file.keys())
        assert file.get_slice("llm.embedding").get_dtype() == "F16"
    assert {n for n in names if n.startswith("llm.head")} == {
        f"llm.head.{'int8' if form == 'int8' else 'blocks'}",
        "llm.head.scale",
    }
    assert not {n for n in names if n.endswith((".q", ".down", "llm.head"))}


def test_fp8_needs_scales(tmp_path: Path, tiny: Callable[[str], ModelFolder], make_precise: Precise) -> None:
    with pytest.raises(BundleError, match=r"no calibrated scale; input of layer\.0\.q") as caught:
        make_precise(tmp_path / "b", tiny("llama"), "fp8", "dual", "C", {})
    assert caught.value.code == 4001


def test_inputs_are_quantised_once(precise: Precise) -> None:
    """q, k and v share theirs, and so do gate and up: four in a layer, one for the head."""
    model = onnx.load(str(precise("qwen2", "int8").path / "decoder.onnx"), load_external_data=False)
    count = [n.op_type for n in model.graph.node].count
    layers = 3
    assert (count("QuantizeLinear"), count("MatMulIntegerToFloat")) == (4 * layers + 1, 7 * layers + 1)
    assert count("MatMul") == count("Gemm") == count("DynamicQuantizeLinear") == 0
