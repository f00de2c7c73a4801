"""The adapter's search in two rounds: what it finds is what one round in float32 finds, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from latentwire.core.errors import BundleError
from latentwire.engines.ort import open_session
from latentwire.export import lookup
from latentwire.export.external import write_weights
from latentwire.export.graph import Graph
from latentwire.export.lookup import FILE, quicken

WIDTH, TOKENS, BEST = 24, 600, 8


def search(folder: Path, best: int = BEST, places: int = 1) -> None:
    """Latents [B,M,d] -> the best of scaled keys, weighted: what a traced adapter does, [B,P,M,d] if P is above 1."""
    rng = np.random.default_rng(0)
    # Many nearly equal keys: int8 puts some in the wrong order.
    keys = rng.standard_normal((TOKENS // 20, 1, WIDTH)) + 0.05 * rng.standard_normal((TOKENS // 20, 20, WIDTH))
    layout = write_weights(folder / "adapter.safetensors", {"table": keys.reshape(TOKENS, WIDTH).astype(np.float16)})
    g = Graph("adapter", layout)
    wide = g.op("Cast", g.weight("table"), to=onnx.TensorProto.FLOAT)
    scaled = g.op("Mul", wide, g.constant("factor", np.array(0.5, np.float32)))
    queries = "latents"
    if places > 1:
        signs = [g.constant(f"sign{n}", np.array((-1.0) ** n, np.float32)) for n in range(places)]
        first = g.constant("first", np.array([1], np.int64))
        signed = [g.op("Mul", "latents", sign) for sign in signs]
        queries = g.op("Concat", *(g.op("Unsqueeze", one, first) for one in signed), axis=1)
    scores = g.op("MatMul", queries, g.op("Transpose", scaled, perm=[1, 0]))
    count = g.constant("count", np.array([best], np.int64))
    g.nodes.append(onnx.helper.make_node("TopK", [scores, count], ["values", "tokens"], axis=-1))
    last = g.constant("last", np.array([-1], np.int64))
    entries = g.op("Cast", g.op("Gather", g.weight("table"), "tokens"), to=onnx.TensorProto.FLOAT)
    weights = g.op("Unsqueeze", g.op("Softmax", "values"), last)
    axis = g.constant("axis", np.array([-2], np.int64))
    g.op("ReduceSum", g.op("Mul", entries, weights), axis, out="rows", keepdims=0)
    shape: list[str | int | None] = ["B", "M", WIDTH]
    wide_shape = [*shape[:1], *([places] if places > 1 else []), *shape[1:]]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, given)
        for name, given in (("latents", shape), ("rows", wide_shape))
    ]
    graph = onnx.helper.make_graph(g.nodes, "adapter", ends[:1], ends[1:], list(g.initializers.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=11)
    (folder / "adapter.onnx").write_bytes(model.SerializeToString())


def run(folder: Path, z: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    model = onnx.load(str(folder / "adapter.onnx"), load_external_data=False)
    for name, kind in (("tokens", onnx.TensorProto.INT64), ("lookup.candidates", onnx.TensorProto.INT64)):
        if name in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    found: list[np.ndarray] = open_session(model.SerializeToString(), 1, folder).run(outputs, {"latents": z})
    return found


def latents(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*shape, WIDTH)).astype(np.float32)


def test_finds_what_float32_finds(tmp_path: Path) -> None:
    search(tmp_path)
    z = latents(8, 12)
    rows, tokens = run(tmp_path, z, ["rows", "tokens"])
    assert quicken(tmp_path, WIDTH)
    found, same, rough = run(tmp_path, z, ["rows", "tokens", "lookup.candidates"])
    assert np.mean(same == tokens) > 0.99
    # The first round alone is not enough here, or this test would show nothing.
    assert np.mean(rough[..., :BEST] == tokens) < 0.9
    np.testing.assert_allclose(found, rows, atol=5e-3 * np.abs(rows).max())


def test_a_row_does_not_see_its_neighbours(tmp_path: Path) -> None:
    search(tmp_path)
    quicken(tmp_path, WIDTH)
    z = latents(4, 5)
    loud = z.copy()
    loud[1:] *= 1000
    (together,), (alone,), (beside,) = (run(tmp_path, given, ["rows"]) for given in (z, z[:1], loud))
    assert together[0].tobytes() == alone[0].tobytes() == beside[0].tobytes()
    assert np.isfinite(run(tmp_path, np.zeros((1, 2, WIDTH), np.float32), ["rows"])[0]).all()


def test_fewer_tokens_than_candidates(tmp_path: Path) -> None:
    search(tmp_path, TOKENS - 5)
    z = latents(1, 2)
    (want,) = run(tmp_path, z, ["rows"])
    assert quicken(tmp_path, WIDTH)
    np.testing.assert_allclose(run(tmp_path, z, ["rows"])[0], want, atol=5e-3 * np.abs(want).max())


def test_keys_are_stored_and_the_table_stays_for_what_reads_it(tmp_path: Path) -> None:
    search(tmp_path)
    quicken(tmp_path, WIDTH)
    graph = onnx.load(str(tmp_path / "adapter.onnx"), load_external_data=False).graph
    assert {t.name for t in graph.initializer if t.external_data} == {"keys", "keys.int8", "keys.scale", "table"}
    assert [n.op_type for n in graph.node].count("Transpose") == 0  # nothing is derived from the table at start
    assert (tmp_path / FILE).is_file()


@pytest.mark.parametrize("places", [1, 2])
def test_candidates_are_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int) -> None:
    """Only the blocks with the best tops are sorted; nothing that belongs among the candidates lies elsewhere."""
    found = []
    for block in (64, 10, 5):  # 600 is no multiple of the first
        folder = tmp_path / str(block)
        folder.mkdir()
        monkeypatch.setattr(lookup, "BLOCK", block)
        search(folder, places=places)
        quicken(folder, WIDTH)
        names = {n.name for n in onnx.load(str(folder / "adapter.onnx"), load_external_data=False).graph.node}
        assert ("lookup.blocks/TopK" in names) == (block < 64)
        found.append(run(folder, latents(8, 12), ["rows", "lookup.candidates"]))
    for rows, candidates in found[1:]:
        assert rows.tobytes() == found[0][0].tobytes()
        np.testing.assert_array_equal(candidates, found[0][1])


def test_a_search_that_loses_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path)
    before = (tmp_path / "adapter.onnx").read_bytes()
    monkeypatch.setattr(lookup, "INT8_TOP", 0.4)  # every key becomes zero
    with pytest.raises(BundleError, match=r"LW-4010 .*adapter\.onnx.*at most 0\.05, got"):
        quicken(tmp_path, WIDTH)
    assert (tmp_path / "adapter.onnx").read_bytes() == before


@pytest.mark.parametrize("other", ["Identity", "TopK"])
def test_another_graph_stays_as_it_is(tmp_path: Path, other: str) -> None:
    search(tmp_path)
    model = onnx.load(str(tmp_path / "adapter.onnx"), load_external_data=False)
    top = next(n for n in model.graph.node if n.op_type == "TopK")
    if other == "TopK":
        model.graph.node.append(onnx.helper.make_node("TopK", list(top.input), ["a", "b"]))
    else:
        top.input[0] = "latents"
    data = model.SerializeToString()
    (tmp_path / "adapter.onnx").write_bytes(data)
    assert not quicken(tmp_path, WIDTH)
    assert (tmp_path / "adapter.onnx").read_bytes() == data
    assert not (tmp_path / FILE).exists()
