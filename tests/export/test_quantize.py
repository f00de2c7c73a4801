"""Stored forms of a weight: what is announced is what comes, blocks make the whole, errors stay under half a step."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  # numpy learns the names of the narrow dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from latentwire.core.errors import ModelError
from latentwire.export.precision import PRECISIONS
from latentwire.export.quantize import Kind, channel_scale, convert, kind, restore, stored, to_blocks
from latentwire.export.shards import DTYPES

QUANTISED = ["int8", "w8", "w4", "fp8"]
SHAPES: list[tuple[str, Kind, tuple[int, ...]]] = [
    ("layer.3.down", "matrix", (80, 48)),
    ("llm.head", "head", (70, 80)),
    ("llm.embedding", "table", (70, 80)),
    ("llm.embedding", "tied", (70, 80)),
    ("layer.0.q_bias", "float", (48,)),
    ("rope.0.cos", "float", (128, 6)),
]


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal numbers with a few columns far larger, far smaller and zero."""
    found = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.05
    if len(shape) == 2:
        found[:, 0] *= 100
        found[:, 1] *= 1e-3
        found[:, 2] = 0
    return found


@pytest.mark.parametrize("form", PRECISIONS)
@pytest.mark.parametrize(("name", "what", "shape"), SHAPES)
def test_what_is_announced_comes(name: str, what: Kind, shape: tuple[int, ...], form: str) -> None:
    """Names, dtypes and shapes, before and after; and the same values block by block."""
    array, precision = values(shape), PRECISIONS[form]
    announced = stored(name, shape, what, precision)
    whole = convert(name, array, what, precision)
    assert [(s.name, DTYPES[s.dtype], s.shape) for s in announced] == [
        (n, a.dtype.name, a.shape) for n, a in whole.items()
    ]
    axis = 1 if what == "matrix" else 0
    parts = [convert(name, block, what, precision) for block in np.array_split(array, [5, 9, 33], axis=axis)]
    for s in announced:
        joined = np.concatenate([part[s.name] for part in parts], axis=s.axis)
        assert joined.tobytes() == whole[s.name].tobytes(), s
        assert all(part[s.name].flags.c_contiguous for part in parts)


def test_kinds() -> None:
    assert kind("llm.embedding", tied=True) == "tied"
    assert kind("llm.embedding", tied=False) == "table"
    assert kind("llm.head", tied=False) == "head"
    assert {kind(f"layer.11.{n}", tied=True) for n in ("q", "k", "v", "o", "gate", "up", "down")} == {"matrix"}
    floats = ("llm.norm", "layer.0.q_norm", "layer.0.q_bias", "layer.0.mlp_norm", "rope.0.sin")
    assert {kind(n, tied=True) for n in floats} == {"float"}


@pytest.mark.parametrize("form", QUANTISED)
def test_no_value_moves_by_more_than_half_a_step(form: str) -> None:
    precision, matrix = PRECISIONS[form], values((75, 40))
    found, half = restore("m", convert("m", matrix, "matrix", precision), matrix.shape, precision)
    assert found.shape == half.shape == matrix.shape
    away = np.abs(found - matrix) / np.maximum(half, 1e-30)
    print(f"{form}: worst {away.max():.4f} half steps")
    assert 0.5 < away.max() < 1.001
    assert (found[:, 2] == 0).all()
    # The bound itself is tight: steps are no wider than the largest value of channel or block asks for.
    widest = {"int8": 127, "w8": 127.5, "w4": 7.5, "fp8": 8}[form]
    assert (half <= np.abs(matrix).max(axis=0) / widest / 2 * 1.001 + (matrix == 0)).all()


def test_largest_magnitude_is_exact_in_int8() -> None:
    matrix = values((64, 8))
    scale = channel_scale(matrix, 127.0)
    whole = convert("m", matrix, "matrix", PRECISIONS["int8"])["m.int8"]
    assert (np.abs(whole).max(axis=0)[np.abs(matrix).max(axis=0) > 0] == 127).all()
    assert scale[2] == 1.0


def test_number_too_large_for_float16() -> None:
    with pytest.raises(ModelError, match=r"do not fit float16; tensor llm\.norm; largest magnitude 1e\+05") as caught:
        convert("llm.norm", np.array([1.0, 1e5], np.float32), "float", PRECISIONS["fp16"])
    assert caught.value.code == 3206
    assert np.isfinite(convert("llm.norm", np.array([1e5]), "float", PRECISIONS["bf16"])["llm.norm"]).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_reads_our_blocks(bits: int) -> None:
    """MatMulNBits of unit rows returns what ``restore`` says, for widths that fill their last block and do not."""
    for width in (96, 75):
        matrix = values((width, 24), bits)
        precision = PRECISIONS[f"w{bits}"]
        parts = convert("m", matrix, "matrix", precision)
        want, _ = restore("m", parts, matrix.shape, precision)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "b", "s"],
            ["y"],
            domain="com.microsoft",
            K=width,
            N=24,
            bits=bits,
            block_size=32,
            accuracy_level=0,
        )
        found = run(node, {"b": parts["m.blocks"], "s": parts["m.scale"]}, np.eye(width, dtype=np.float32))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


def test_packing_equals_onnx_runtimes_own() -> None:
    """Bit for bit, where both choose the same scale: a block's other sign stays under 7.5 of its 8 steps."""
    from onnxruntime.capi import _pybind_state as c

    matrix = values((128, 16))
    matrix[::32] = -np.abs(matrix).reshape(4, 32, 16).max(axis=1) * 1.2
    blocks, scale = to_blocks(matrix, 4)
    theirs = np.zeros((16, 4, 16), np.uint8), np.zeros((16, 4), np.float32), np.zeros((16, 2), np.uint8)
    c.quantize_matmul_4bits(theirs[0], np.ascontiguousarray(matrix), theirs[1], theirs[2], 32, 16, 128, True)
    some = np.abs(scale) < 1  # A block of zeros has scale 1 here and 0 there.
    np.testing.assert_allclose(theirs[1][some], scale[some], rtol=1e-6)
    apart = (theirs[0] != blocks)[some]
    assert apart.mean() < 0.002, "only ties may differ"


def run(node: NodeProto, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["R", "W"]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], tensors), opset_imports=opsets)
    model.ir_version = 11
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)
