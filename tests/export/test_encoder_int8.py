"""The encoder's products in int8: which ones, how near, and that a row does not see its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from safetensors.numpy import load_file

from latentwire.engines.ort import open_session
from latentwire.export.encoder_int8 import FILE, narrow
from latentwire.export.external import write_weights
from latentwire.export.graph import Graph

WIDTH, WIDE = 24, 40
NAMES = {
    "layers.0.gate_proj.weight": (WIDE, WIDTH),
    "layers.0.up_proj.weight": (WIDE, WIDTH),
    "layers.0.down_proj.weight": (WIDTH, WIDE),
    "pool.query.weight": (WIDTH, WIDTH),
    "projection.weight": (8, WIDTH),
}


def traced(folder: Path, names: dict[str, tuple[int, int]] = NAMES) -> None:
    """x [B,S,W], means [B,M,W] -> states [B,S,W], queries [B,M,W], keys [B,S,8], as torch's exporter writes them."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.standard_normal(s) / np.sqrt(s[1])).astype(np.float16) for n, s in names.items()}
    g = Graph("encoder", write_weights(folder / FILE, weights | {"idf": np.ones(9, np.float16)}))

    def linear(x: str, weight: str, out: str | None = None) -> str:
        wide = g.op("Cast", g.weight(weight), to=TensorProto.FLOAT)
        return g.op("MatMul", x, g.op("Transpose", wide, perm=[1, 0]), out=out)

    gate, up, down, query, projection = names
    linear(g.op("Mul", linear("x", gate), linear("x", up)), down, "states")
    linear("means", query, "queries")
    linear("x", projection, "keys")
    sizes: dict[str, list[str | int | None]] = {"x": ["B", "S", WIDTH], "means": ["B", "M", WIDTH]}
    sizes |= {"states": ["B", "S", WIDTH], "queries": ["B", "M", WIDTH], "keys": ["B", "S", 8]}
    ends = {n: onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()}
    graph = onnx.helper.make_graph(
        g.nodes, "encoder", list(ends.values())[:2], list(ends.values())[2:], list(g.initializers.values())
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=11)
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())


def run(folder: Path, x: np.ndarray, means: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = open_session(folder / "encoder.onnx", 1).run(None, {"x": x, "means": means})
    return found


def given(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x, means = (rng.standard_normal((batch, n, WIDTH)).astype(np.float32) for n in (7, 3))
    return x, means


def test_layers_and_pooling_are_int8_and_near(tmp_path: Path) -> None:
    traced(tmp_path)
    before = run(tmp_path, *given(4))
    assert narrow(tmp_path) == 4
    after = run(tmp_path, *given(4))
    for was, came in zip(before[:2], after[:2], strict=True):
        assert was.shape == came.shape
        assert 0 < np.linalg.norm(was - came) / np.linalg.norm(was) < 0.02
    # What decides by small differences is as it was.
    assert before[2].tobytes() == after[2].tobytes()


def test_each_input_is_quantised_once_and_weights_lie_there_once(tmp_path: Path) -> None:
    traced(tmp_path)
    narrow(tmp_path)
    model = onnx.load(str(tmp_path / "encoder.onnx"), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3  # for gate and up together, for down, for the queries
    assert kinds.count("MatMulIntegerToFloat") == 4
    held = load_file(str(tmp_path / FILE))
    assert {n for n in held if not n.endswith((".int8", ".scale"))} == {"projection.weight", "idf"}
    assert held["layers.0.gate_proj.weight.int8"].shape == (WIDTH, WIDE)


def test_a_row_does_not_see_its_neighbours(tmp_path: Path) -> None:
    traced(tmp_path)
    narrow(tmp_path)
    x, means = given(5)
    loud = x.copy()
    loud[1:] *= 1000
    together, alone, beside = run(tmp_path, x, means), run(tmp_path, x[:1], means[:1]), run(tmp_path, loud, means)
    for a, b, c in zip(together, alone, beside, strict=True):
        assert a[0].tobytes() == b[0].tobytes() == c[0].tobytes()


def test_an_encoder_without_such_products_stays_as_it_is(tmp_path: Path) -> None:
    traced(tmp_path, {f"other.{i}": shape for i, shape in enumerate(NAMES.values())})
    before = (tmp_path / "encoder.onnx").read_bytes(), (tmp_path / FILE).read_bytes()
    assert narrow(tmp_path) == 0
    assert ((tmp_path / "encoder.onnx").read_bytes(), (tmp_path / FILE).read_bytes()) == before
