"""The GPU engine's own class on the device "cpu": addresses, aliasing, in-place inputs, copies. No GPU is involved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, LatentError
from latentwire.engines.base import Engine
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.ort_cuda import CHECK_EVERY, OrtCudaEngine, place_of, providers
from latentwire.engines.ort_device import Place, sentinels
from latentwire.engines.ort_session import open_session
from latentwire.export.drive import embed, greedy, lengths_of

Prompts = list[list[int]]


@pytest.fixture
def engine(tiny_decoder: Callable[[str], Bundle]) -> OrtCudaEngine:
    return OrtCudaEngine(tiny_decoder("llama-3.1"), device="cpu", threads=1)


def test_equals_the_cpu_engine(engine: OrtCudaEngine, byte_prompts: Prompts, capfd: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, over 20 steps, in place without a warning, with guard words untouched."""
    plain = OrtCpuEngine(engine.bundle, threads=1)
    assert greedy(engine, byte_prompts[:6], 20).tolist() == greedy(plain, byte_prompts[:6], 20).tolist()
    assert "in-place" not in capfd.readouterr().err
    engines: list[Engine] = [engine, plain]
    held = [one.alloc(6, 64) for one in engines]
    for one, buffers in zip(engines, held, strict=True):
        one.prefill(buffers, embed(one, byte_prompts[:6]), lengths_of(byte_prompts[:6]))
        one.decode(buffers)
    for name in ("logits", "next_embeds", "next_token", "lengths"):
        np.testing.assert_array_equal(getattr(held[0], name), getattr(held[1], name))
    assert list(held[0].cache) == list(held[1].cache)
    for name, cache in held[1].cache.items():
        np.testing.assert_array_equal(held[0].cache[name], cache)


@pytest.mark.parametrize("flavour", ["dual", "mask", "gqa"])
def test_float16_in_every_flavour(flavour: str, precise: Callable[..., Bundle], byte_prompts: Prompts) -> None:
    """What a GPU would be given: a float16 cache, written in place by every flavour's own node."""
    bundle = precise("llama-3.1", "fp16", flavour)
    engine, plain = OrtCudaEngine(bundle, device="cpu", threads=1), OrtCpuEngine(bundle, threads=1)
    assert engine.alloc(1, 8).cache["past_k.0"].dtype == np.float16
    assert greedy(engine, byte_prompts[:4], 6).tolist() == greedy(plain, byte_prompts[:4], 6).tolist()


def test_steps_have_fixed_addresses(engine: OrtCudaEngine, byte_prompts: Prompts) -> None:
    """What a CUDA graph needs: one binding, the same input memory at every step, through two prompts."""
    buffers = engine.alloc(3, 64)
    seen = []
    for prompts in (byte_prompts[:3], byte_prompts[3:6]):
        engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
        for _ in range(2):
            engine.decode(buffers)
            steps = buffers.decode
            seen.append((id(steps.binding), steps.graph, *(v.data_ptr() for v in steps.inputs.values())))
    assert len(set(seen)) == 1
    assert sorted(buffers.decode.inputs) == ["kv_lengths", "last_index", "position_ids", "write_indices"]
    other = engine.alloc(3, 64)
    engine.prefill(other, embed(engine, byte_prompts[:3]), lengths_of(byte_prompts[:3]))
    engine.decode(other)
    assert other.decode.graph != buffers.decode.graph


def test_write_beside_the_cache_is_caught(engine: OrtCudaEngine) -> None:
    buffers = engine.alloc(2, 8)
    buffers.check_guards()
    block = buffers.regions["past_v.1"].block
    raw = np.array(block.numpy())
    raw[-1] = 0
    block.update_inplace(raw)
    with pytest.raises(LatentError) as caught:
        buffers.check_guards()
    assert (caught.value.code, caught.value.where) == (3002, "tensor past_v.1")


def test_copies_refuse_to_be_written(engine: OrtCudaEngine, byte_prompts: Prompts) -> None:
    """A write would be lost; ``feed`` reaches the device."""
    buffers = engine.alloc(2, 64)
    engine.prefill(buffers, embed(engine, byte_prompts[:2]), lengths_of(byte_prompts[:2]))
    with pytest.raises(ValueError, match="read-only"):
        buffers.next_embeds[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        buffers.cache["past_k.0"][0] = 1
    fed = np.arange(2 * 48, dtype=np.float32).reshape(2, 1, 48)
    buffers.feed(fed)
    np.testing.assert_array_equal(buffers.next_embeds, fed)
    buffers.rows(1, 2).feed(-fed[:1])
    np.testing.assert_array_equal(buffers.next_embeds, [fed[0], -fed[0]])


def test_no_number_is_found_within_sixteen_steps(engine: OrtCudaEngine, byte_prompts: Prompts) -> None:
    buffers = engine.alloc(2, 64)
    engine.prefill(buffers, embed(engine, [p[:4] for p in byte_prompts[:2]]), np.array([4, 4]))
    poison = np.zeros((2, 1, 48), np.float32)
    poison[1] = np.nan
    buffers.feed(poison)
    for _ in range(CHECK_EVERY - 1):
        engine.decode(buffers)
    with pytest.raises(LatentError) as caught:
        engine.decode(buffers)
    assert (caught.value.code, caught.value.where) == (3001, "logits of engine ort-cpu, batch row 1")
    with pytest.raises(LatentError, match="LW-3001"):
        engine.prefill(buffers, np.full((2, 4, 48), np.inf, np.float32), np.array([4, 4]))


def test_no_gpu_here() -> None:
    """An ONNX Runtime without CUDA says what to install; odd names are refused."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EnvironmentFault, match="has no CUDA") as caught:
            place_of("cuda:0")
        assert caught.value.code == 5001
        assert "onnxruntime-gpu" in caught.value.fix
    for name in ("gpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(EnvironmentFault, match="no such device"):
            place_of(name)


def test_provider_options() -> None:
    (first, settings), (last, _) = providers(Place("cuda", 1), True)
    assert (first, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    found = [settings[name] for name in ("device_id", "use_tf32", "enable_cuda_graph")]
    assert found == ["1", "0", "1"]
    assert providers(Place("cuda", 0), False)[0][1]["enable_cuda_graph"] == "0"


def test_a_graph_that_cannot_be_captured_runs_without(
    engine: OrtCudaEngine, byte_prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime refuses the session; only that refusal is met with a second try."""
    refusal = "This session cannot use the graph capture feature as requested by the user  as all compute graph nodes"
    tried = []

    def refuse(*given: Any, **named: Any) -> Any:
        tried.append(engine.graphs)
        if engine.graphs:
            raise BundleError(4001, "ONNX Runtime cannot run a graph", expected=refusal)
        return open_session(*given, **named)

    monkeypatch.setattr("latentwire.engines.ort_cuda.open_session", refuse)
    engine.graphs = True
    assert greedy(engine, byte_prompts[:2], 3).shape == (2, 3)
    assert (tried, engine.graphs) == ([True, False], False)
    engine.close()
    engine.graphs, refusal = True, "Node (x) has input size 9"
    with pytest.raises(BundleError, match="input size 9"):
        engine.session("decoder")


def test_sentinels_of_bfloat16() -> None:
    import ml_dtypes

    from latentwire.engines.buffers import SENTINEL

    assert (sentinels("bfloat16", 5).view(ml_dtypes.bfloat16) == SENTINEL).all()
    assert (sentinels("float16", 5).view(np.float16) == SENTINEL).all()


def test_memory_that_is_not_there(engine: OrtCudaEngine) -> None:
    """ONNX Runtime's own allocator refuses, and the error says so."""
    with pytest.raises(EnvironmentFault) as caught:
        Place("cpu", 0).empty(1 << 55)
    assert caught.value.code == 5003
