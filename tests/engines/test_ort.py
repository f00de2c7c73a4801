"""The ONNX Runtime engine's own rules; what it computes is compared in tests/export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from latentwire.core.errors import BundleError, EnvironmentFault, LatentError
from latentwire.engines.bundle import AdapterInfo, Bundle, EncoderInfo, LlmInfo, Manifest, describe_files
from latentwire.engines.checks import finite
from latentwire.engines.manifest import FileEntry
from latentwire.engines.ort import ADAPT_LATENTS, LANE_BYTES, OrtCpuEngine, open_session
from latentwire.engines.specs import bundle_specs

LLM = LlmInfo("none", "00" * 32, "llama", 4, 10, 1, 1, 2, 64, (1,), (2,), 2, "float32")


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Sequence[Any] = ()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    data: bytes = made.SerializeToString()
    return data


def value(name: str, dims: list[str | int | None]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


@pytest.fixture
def engine(tmp_path: Path) -> OrtCpuEngine:
    """Only an adapter: rows = latents x weights, [B,M,3] -> [B,M,4]."""
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    nodes = [helper.make_node("MatMul", ["latents", "w"], ["rows"])]
    data = model(nodes, [value("latents", ["B", "M", 3])], [value("rows", ["B", "R", 4])], [weights])
    (tmp_path / "adapter.onnx").write_bytes(data)
    manifest = Manifest(
        describe_files(tmp_path),
        EncoderInfo("none", "00" * 32, 3, 2, 16),
        LLM,
        AdapterInfo("none", 0, "00" * 32),
        bundle_specs(LLM, 3, "float32"),
        "fp32",
        {},
        {},
    )
    return OrtCpuEngine(Bundle(tmp_path, manifest), threads=1, parts=["adapter"])


def test_runs_a_graph(engine: OrtCpuEngine) -> None:
    z = np.ones((2, 5, 3), np.float32)
    np.testing.assert_array_equal(engine.adapt(z)[1, 4], [12, 15, 18, 21])


def test_rows_beyond_one_call_of_the_adapter(engine: OrtCpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, and what is said of a bad one counts from the first."""
    calls: list[int] = []
    real = engine._outputs

    def outputs(part: str, given: dict[str, Any]) -> list[Any]:
        calls.append(len(given["latents"]))
        return real(part, given)

    monkeypatch.setattr(engine, "_outputs", outputs)
    z = np.random.default_rng(0).standard_normal((7, ADAPT_LATENTS // 3, 3)).astype(np.float32)
    whole = engine.adapt(z)
    assert calls == [3, 3, 1]
    assert all(whole[b].tobytes() == engine.adapt(z[b : b + 1])[0].tobytes() for b in range(7))
    assert engine.adapt(z[:0]).shape == (0, ADAPT_LATENTS // 3, 4)
    z[5, 0, 0] = np.nan
    with pytest.raises(LatentError) as caught:
        engine.adapt(z)
    assert caught.value.where == "adapter rows of engine ort-cpu, batch row 5"


def test_large_numbers_whose_sum_overflows_are_finite(engine: OrtCpuEngine) -> None:
    finite(np.full((2, 3), 3e38, np.float32), "rows", "ort-cpu")


def test_graphs_are_opened_when_used(engine: OrtCpuEngine) -> None:
    assert engine._sessions == {}
    engine.adapt(np.ones((1, 1, 3), np.float32))
    assert list(engine._sessions) == ["adapter"]
    engine.close()
    assert engine._sessions == {}


def test_lanes_share_sessions_and_processors(engine: OrtCpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.lanes() == ()  # one thread cannot be shared out
    wide = OrtCpuEngine(engine.bundle, threads=3, parts=["adapter"])
    first, second = wide.lanes()
    assert isinstance(first, OrtCpuEngine)
    assert isinstance(second, OrtCpuEngine)
    assert first is not second
    assert (first.threads, second.threads, first.lanes()) == (1, 1, ())
    assert first.session("adapter") is second.session("adapter")
    assert wide.session("adapter") is not first.session("adapter")
    z = np.ones((2, 5, 3), np.float32)
    np.testing.assert_array_equal(first.adapt(z), wide.adapt(z))
    with pytest.raises(BundleError, match="4008"):
        second.session("decoder")
    # Whoever changes the description of the bundle, as a benchmark does, finds it in lanes made later.
    renamed = replace(engine.bundle, manifest=replace(engine.bundle.manifest, precision="int8"))
    wide.bundle = renamed
    assert [lane.bundle for lane in wide.lanes()] == [renamed, renamed]
    wide.close()
    assert first._sessions == {}
    heavy = {"decoder.safetensors": FileEntry("00" * 32, LANE_BYTES + 1)}
    wide.bundle = replace(renamed, manifest=replace(renamed.manifest, files=heavy))
    assert wide.lanes() == ()


def test_part_the_caller_did_not_ask_for(engine: OrtCpuEngine) -> None:
    with pytest.raises(BundleError) as caught:
        engine.encode(np.ones((1, 2), np.int64), np.array([2]), 2)
    assert (caught.value.code, caught.value.where) == (4008, "encoder")


def test_wrong_shape(engine: OrtCpuEngine) -> None:
    with pytest.raises(LatentError) as caught:
        engine.adapt(np.ones((1, 1, 4), np.float32))
    assert caught.value.code == 3002
    assert "expected latents float32 [B, M, 3]" in caught.value.expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number(engine: OrtCpuEngine, bad: float) -> None:
    z = np.ones((3, 2, 3), np.float32)
    z[2, 1, 0] = bad
    with pytest.raises(LatentError) as caught:
        engine.adapt(z)
    assert (caught.value.code, caught.value.where) == (3001, "adapter rows of engine ort-cpu, batch row 2")


def test_graph_that_does_not_load(tmp_path: Path, engine: OrtCpuEngine) -> None:
    (tmp_path / "adapter.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError) as caught:
        engine.adapt(np.ones((1, 1, 3), np.float32))
    assert (caught.value.code, caught.value.where) == (4001, str(tmp_path / "adapter.onnx"))


def test_operator_nobody_has() -> None:
    data = model([helper.make_node("Teleport", ["x"], ["y"])], [value("x", [1])], [value("y", [1])])
    with pytest.raises(BundleError) as caught:
        open_session(data, 1)
    assert caught.value.code == 4001
    assert "Teleport" in caught.value.expected


def test_buffers_of_another_engine(engine: OrtCpuEngine) -> None:
    from latentwire.engines.buffers import alloc_buffers

    with pytest.raises(TypeError, match="another engine"):
        engine.prefill(alloc_buffers(LLM, 1, 4), np.ones((1, 2, 4), np.float32), np.array([2]))


def test_cache_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire.engines.buffers import alloc_buffers

    def full(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr("latentwire.engines.buffers.np.full", full)
    with pytest.raises(EnvironmentFault) as caught:
        alloc_buffers(LLM, 4, 32)
    assert (caught.value.code, caught.value.where) == (5003, "batch 4, capacity 32")


def test_step_that_does_not_fit(engine: OrtCpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, *_: object) -> object:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

    monkeypatch.setattr(engine, "session", lambda part: Session())
    with pytest.raises(EnvironmentFault) as caught:
        engine.adapt(np.ones((1, 1, 3), np.float32))
    assert (caught.value.code, caught.value.where) == (5003, "adapter")


def test_a_step_reuses_the_memory_of_the_one_before() -> None:
    """No page is fetched from the kernel again for 64 MB that lie between two nodes."""
    resource = pytest.importorskip("resource")
    weights = numpy_helper.from_array(np.ones((4, 4096), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["wide"]), helper.make_node("ReduceSum", ["wide"], ["y"])]
    session = open_session(model(nodes, [value("x", ["B", 4])], [value("y", [1, 1])], [weights]), 1)
    given = {"x": np.ones((4096, 4), np.float32)}
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        session.run(None, given)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[0] > 4096, "the first run must touch it all"
    assert max(faults[2:]) < 400
