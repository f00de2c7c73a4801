"""What TensorRT's parser makes of a decoder, and that each known way of reading it wrongly is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from latentwire.core.errors import BundleError
from latentwire.engines.bundle import Bundle
from latentwire.engines.trt_log import shared_log
from latentwire.export.audit import audit
from latentwire.export.plan import make_builder, read

pytestmark = pytest.mark.trt

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def parse(rtx: Any, make_job: Any) -> Callable[[Bundle], tuple[Any, dict[str, Any], Any]]:
    def run(bundle: Bundle) -> tuple[Any, dict[str, Any], Any]:
        log = shared_log(rtx)
        log.start()
        builder = make_builder(rtx, log, "tensorrt-rtx")
        network, found = read(rtx, builder, log, make_job(bundle))
        return network, found, builder

    return run


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Bundle, Change], Bundle]:
    """The same bundle with another decoder graph over the same weights."""

    def make(bundle: Bundle, change: Change) -> Bundle:
        model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
        change(model)
        (tmp_path / "decoder.safetensors").symlink_to(bundle.path / "decoder.safetensors")
        (tmp_path / "decoder.onnx").write_bytes(model.SerializeToString())
        return Bundle(tmp_path, bundle.manifest)

    return make


def nodes(model: onnx.ModelProto, op_type: str) -> list[Any]:
    return [n for n in model.graph.node if n.op_type == op_type]


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "llama-3.1", "qwen2", "qwen2-tied", "gemma3"])
@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_every_family_passes(kind: str, form: str, plain: Any, parse: Any) -> None:
    """Its casts: those of the file, and one up and one down around each norm."""
    bundle = plain(kind, form)
    _, found, _ = parse(bundle)
    assert (found["kv_cache_updates"], found["attentions"]) == (4, 2)
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    constants = {w.name for w in model.graph.initializer}
    own = Counter(n.attribute[0].i for n in nodes(model, "Cast") if n.input[0] not in constants)
    norms = len(nodes(model, "RMSNormalization"))
    assert norms == (13 if kind == "gemma3" else 5)
    half, element = {"fp16": ("HALF", TensorProto.FLOAT16), "bf16": ("BF16", TensorProto.BFLOAT16)}[form]
    assert found["casts"] == {
        f"FLOAT to {half}": own[element] + norms,
        f"{half} to FLOAT": own[TensorProto.FLOAT] + norms,
    }


def test_mask_flavour_passes(plain: Any, parse: Any) -> None:
    _, found, _ = parse(plain("llama", "fp16", "mask"))
    assert (found["kv_cache_updates"], found["attentions"]) == (4, 2)


def test_fp8_keeps_its_quantisation(plain: Any, parse: Any, rtx: Any) -> None:
    """Fourteen matrices and eight inputs that share their quantised form; a lost pair is missed."""
    bundle = plain("llama", "fp8")
    network, found, _keep = parse(bundle)
    assert found["attentions"] == 2
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    assert len(nodes(model, "QuantizeLinear")) == 8
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x", "y"], ["z"]))
    with pytest.raises(BundleError) as caught:
        audit(rtx, network, model)
    assert (caught.value.what, caught.value.expected) == (
        "TensorRT read the graph differently: QuantizeLinear layers",
        "expected 9, got 8",
    )


def no_lengths(model: onnx.ModelProto) -> None:
    nodes(model, "TRT_Attention")[1].input[5] = ""


def upper_left(model: onnx.ModelProto) -> None:
    for attribute in nodes(model, "TRT_Attention")[1].attribute:
        if attribute.name == "causal_kind":
            attribute.s = b"upper_left"


def decomposable(model: onnx.ModelProto) -> None:
    nodes(model, "TRT_Attention")[0].attribute.append(helper.make_attribute("TRT_decomposable", 1))


def standard_attention(model: onnx.ModelProto) -> None:
    """What a parser that does not know TRT_Attention would see: the function's body."""
    at, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "TRT_Attention")
    q, k, v, *_, lengths = node.input
    body = [
        helper.make_node("Cast", [lengths], ["wide"], name="wide/Cast", to=TensorProto.INT64),
        helper.make_node("Attention", [q, k, v, "", "", "", "wide"], list(node.output), is_causal=1, scale=1.0),
    ]
    model.graph.node.remove(node)
    for i, made in enumerate(body):
        model.graph.node.insert(at + i, made)


def copied_cache(model: onnx.ModelProto) -> None:
    """The cache leaves as a copy of what was updated."""
    scatter = nodes(model, "TensorScatter")[2]
    present = scatter.output[0]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == present:
                node.input[i] = "inside"
    scatter.output[0] = "inside"
    half = helper.make_tensor("half", TensorProto.FLOAT16, [], [1.0])
    model.graph.initializer.append(half)
    model.graph.node.append(helper.make_node("Mul", ["inside", "half"], [present], name="copy"))


def other_index(model: onnx.ModelProto) -> None:
    nodes(model, "TensorScatter")[3].input[2] = "last_index"


def values_for_keys(model: onnx.ModelProto) -> None:
    nodes(model, "TRT_Attention")[1].input[1] = "present_v.1"


def dynamic_capacity(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.shape.dim[2].dim_param = "C"


FAULTS: list[tuple[Change, str, str]] = [
    (no_lengths, "key and value lengths", "of layer 1"),
    (upper_left, "causal kind", "of layer 1"),
    (decomposable, "may fall back to single operators", "of layer 0"),
    (standard_attention, "causal kind", "of layer 0"),
    (copied_cache, "cache update that is no network output", "present_k.1/TensorScatter"),
    (other_index, "source of the write index", "present_v.1/TensorScatter"),
    (values_for_keys, "cache that attention reads", "of layer 1"),
    (dynamic_capacity, "TensorRT cannot read the graph", "TensorScatter"),
]


@pytest.mark.parametrize(("change", "what", "where"), FAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_faults_are_named(change: Change, what: str, where: str, plain: Any, changed: Any, parse: Any) -> None:
    with pytest.raises(BundleError) as caught:
        parse(changed(plain("llama"), change))
    assert caught.value.code == 4012
    assert what in caught.value.what
    assert where in caught.value.where


def no_mask(model: onnx.ModelProto) -> None:
    nodes(model, "Attention")[1].input[3] = ""


def mask_without_lengths(model: onnx.ModelProto) -> None:
    both = nodes(model, "And")[0]
    both.input[1] = both.input[0]


def causal_beside_the_mask(model: onnx.ModelProto) -> None:
    nodes(model, "Attention")[0].attribute.append(helper.make_attribute("is_causal", 1))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (no_mask, "what the mask is made of"),
        (mask_without_lengths, "what the mask is made of"),
        (causal_beside_the_mask, "TensorRT"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_faults_of_the_mask_are_named(change: Change, what: str, plain: Any, changed: Any, parse: Any) -> None:
    with pytest.raises(BundleError) as caught:
        parse(changed(plain("llama", "fp16", "mask"), change))
    assert caught.value.code == 4012
    assert what in caught.value.what


def test_layer_that_is_missing(plain: Any, parse: Any) -> None:
    bundle = plain("llama")
    m = bundle.manifest
    with pytest.raises(BundleError) as caught:
        parse(Bundle(bundle.path, replace(m, llm=replace(m.llm, num_layers=3))))
    assert (caught.value.code, caught.value.what) == (
        4012,
        "TensorRT read the graph differently: cache tensors updated in place",
    )


def test_capacity_of_another_file(plain: Any, parse: Any) -> None:
    bundle = plain("llama")
    with pytest.raises(BundleError) as caught:
        parse(Bundle(bundle.path, replace(bundle.manifest, capacity=96)))
    assert "static cache shape" in caught.value.what


def test_cast_that_the_file_does_not_have(rtx: Any, plain: Any, parse: Any) -> None:
    """The network is compared with a file that lacks one of its casts, as if the parser had added it."""
    bundle = plain("llama")
    network, _, _keep = parse(bundle)
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    model.graph.node.remove(nodes(model, "Cast")[1])
    with pytest.raises(BundleError) as caught:
        audit(rtx, network, model)
    assert "a cast HALF to FLOAT that the file does not have" in caught.value.what
    assert caught.value.where == "cast cast_1/Cast"


def test_weight_of_another_dtype(rtx: Any, plain: Any, parse: Any) -> None:
    bundle = plain("llama")
    network, _, _keep = parse(bundle)
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    next(w for w in model.graph.initializer if w.name == "layer.1.up").data_type = TensorProto.BFLOAT16
    with pytest.raises(BundleError) as caught:
        audit(rtx, network, model)
    assert (caught.value.what, caught.value.where) == (
        "TensorRT read the graph differently: a weight has another dtype",
        "weight layer.1.up",
    )


def test_output_nobody_asked_for(rtx: Any, plain: Any, parse: Any) -> None:
    bundle = plain("llama")
    network, _, _keep = parse(bundle)
    model = onnx.load(str(bundle.path / "decoder.onnx"), load_external_data=False)
    del model.graph.output[0]
    with pytest.raises(BundleError) as caught:
        audit(rtx, network, model)
    assert "names of outputs" in caught.value.what
