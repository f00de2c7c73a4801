"""The TensorRT engine's protocol, run without a GPU: addresses, aliases, profiles, shapes, alternating buffers.

What stands behind the context here is a stand-in (conftest.py): the same ONNX file on ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import BundleError, LatentError
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.trt import TrtEngine, bucket
from latentwire.engines.trt_memory import HostDevice

pytestmark = pytest.mark.trt
NEW, CAPACITY = 9, 64


def greedy(engine: Any, embed: Any, prompts: list[list[int]], new: int = NEW) -> Any:
    embeds, lengths = embed(engine.splice, prompts)
    buffers = engine.alloc(len(prompts), embeds.shape[1] + new)
    engine.prefill(buffers, embeds, lengths)
    tokens = [buffers.next_token.copy()]
    for _ in range(new - 1):
        engine.decode(buffers)
        tokens.append(buffers.next_token.copy())
    buffers.check_guards()
    return np.stack(tokens, axis=1), buffers


@pytest.fixture
def make_engine(stand_in: Any, host: HostDevice) -> Callable[..., tuple[TrtEngine, Any]]:
    def make(bundle: Bundle, **options: Any) -> tuple[TrtEngine, Any]:
        module = stand_in(bundle)
        return TrtEngine(bundle, **({"device": host, "trt": module, "threads": 1} | options)), module

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("graphs", [True, False])
def test_same_tokens_as_ort(kind: str, graphs: bool, compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    """Eleven ragged rows: on the device twelve, where graphs are recorded."""
    bundle = compiled(kind)
    engine, module = make_engine(bundle, graphs=graphs)
    tokens, buffers = greedy(engine, embed, prompts)
    wanted, _ = greedy(OrtCpuEngine(bundle, threads=1), embed, prompts)
    assert tokens.tolist() == wanted.tolist()
    assert buffers.out.rows == (12 if graphs else 11)
    contexts = module.engines["decoder"].contexts
    assert [c.profile for c in contexts] == ([0, 1, 1] if graphs else [0, 1])
    assert contexts[0].runs == 1
    assert sum(c.runs for c in contexts[1:]) == NEW - 1
    assert engine.name == "trt-rtx"


def test_recorded_after_a_run_of_its_own(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    engine, _ = make_engine(compiled("llama"))
    _, buffers = greedy(engine, embed, prompts, new=3)
    assert [(t.ran, t.recorded is None) for t in buffers.out.turns] == [(True, True), (True, True)]
    engine.decode(buffers)
    assert [t.recorded is None for t in buffers.out.turns] == [False, True]
    engine.decode(buffers)
    assert [t.recorded is None for t in buffers.out.turns] == [False, False]


def test_buffers_serve_a_second_batch(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    """Recorded graphs stay right when other prompts come, and when another batch ran in between."""
    engine, _ = make_engine(compiled("llama"))
    embeds, lengths = embed(engine.splice, prompts)
    buffers = engine.alloc(len(prompts), CAPACITY)
    for order in (slice(None), slice(None, None, -1)):
        engine.prefill(buffers, embeds[order].copy(), lengths[order].copy())
        got = [buffers.next_token.copy()]
        for step in range(NEW):  # odd: the next batch begins in the other turn
            engine.decode(buffers)
            got.append(buffers.next_token.copy())
            if step == 2:
                greedy(engine, embed, prompts[:3], new=4)
        wanted, _ = greedy(engine, embed, prompts[order], new=NEW + 1)
        assert np.stack(got, axis=1).tolist() == wanted.tolist()


def test_batch_equals_single(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    engine, _ = make_engine(compiled("llama"))
    together, _ = greedy(engine, embed, prompts)
    alone = [greedy(engine, embed, [p])[0][0].tolist() for p in prompts]
    assert together.tolist() == alone


def test_row_refilled_while_others_run(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    bundle = compiled("llama")
    engine, _ = make_engine(bundle)
    wanted, _ = greedy(engine, embed, prompts)
    embeds, lengths = embed(engine.splice, prompts[:4])
    buffers = engine.alloc(4, CAPACITY)
    engine.prefill(buffers, embeds, lengths)
    got = [buffers.next_token.copy()]
    for _ in range(3):
        engine.decode(buffers)
        got.append(buffers.next_token.copy())
    fresh, length = embed(engine.splice, [prompts[7]])
    engine.prefill(buffers.rows(2, 3), fresh, length)
    refilled = [int(buffers.next_token[2])]
    for _ in range(4):
        engine.decode(buffers)
        got.append(buffers.next_token.copy())
        refilled.append(int(buffers.next_token[2]))
    rows = np.stack(got, axis=1)
    for row in (0, 1, 3):
        assert rows[row].tolist() == wanted[row, :8].tolist()
    assert refilled == wanted[7, :5].tolist()
    buffers.check_guards()


def test_cache_is_what_ort_has(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    bundle = compiled("llama")
    engine, _ = make_engine(bundle)
    _, mine = greedy(engine, embed, prompts)
    _, theirs = greedy(OrtCpuEngine(bundle, threads=1), embed, prompts)
    for name in ("past_k.0", "past_v.1"):
        for row, length in enumerate(mine.lengths):
            np.testing.assert_array_equal(mine.cache[name][row, :, :length], theirs.cache[name][row, :, :length])
    assert mine.cache["past_k.0"].shape == (len(prompts), 2, CAPACITY, 64)
    assert set(mine.memory) == set(mine.cache)


def test_torch_moves_the_same_bytes(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    """torch's copies and addresses, on the CPU."""
    from latentwire.engines.trt_torch import TorchDevice

    class Pretend(TorchDevice):
        def gpu(self) -> str:
            return "sm_89"

    bundle = compiled("llama")
    tokens, _ = greedy(make_engine(bundle, device=Pretend("cpu"))[0], embed, prompts)
    wanted, _ = greedy(make_engine(bundle)[0], embed, prompts)
    assert tokens.tolist() == wanted.tolist()


def test_guard_bytes_are_watched(compiled: Any, make_engine: Any) -> None:
    engine, _ = make_engine(compiled("llama"))
    buffers = engine.alloc(2, CAPACITY)
    buffers.check_guards()
    block = buffers.held.blocks["past_v.1"]
    buffers.device.put(block, np.zeros(1, np.uint8), block.nbytes - 1)
    with pytest.raises(LatentError) as caught:
        buffers.check_guards()
    assert (caught.value.code, caught.value.where) == (3002, "tensor past_v.1")


def test_nan_is_found_at_the_next_check(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    engine, _ = make_engine(compiled("llama"), check_every=3)
    embeds, lengths = embed(engine.splice, prompts)
    buffers = engine.alloc(len(prompts), CAPACITY)
    engine.prefill(buffers, embeds, lengths)
    engine.decode(buffers)
    bad = np.zeros((len(prompts), 1, 128), np.float32)
    bad[4] = np.nan
    buffers.feed(bad)
    engine.decode(buffers)
    with pytest.raises(LatentError) as caught:
        engine.decode(buffers)
    assert caught.value.code == 3001
    assert "engine trt-rtx, batch row 4" in caught.value.where
    assert buffers.steps == 3


def test_logits_when_checked(compiled: Any, make_engine: Any, embed: Any, prompts: Any) -> None:
    bundle = compiled("llama")
    _, mine = greedy(make_engine(bundle, check_every=1)[0], embed, prompts)
    _, theirs = greedy(OrtCpuEngine(bundle, threads=1), embed, prompts)
    np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-5)


@pytest.mark.parametrize(("batch", "capacity", "words"), [(13, 64, "at most 12"), (2, 65, "at most 64 slots")])
def test_sizes_that_no_plan_was_made_for(
    batch: int, capacity: int, words: str, compiled: Any, make_engine: Any
) -> None:
    engine, _ = make_engine(compiled("llama"))
    with pytest.raises(LatentError) as caught:
        engine.alloc(batch, capacity)
    assert caught.value.code == 3002
    assert words in caught.value.expected


def test_prompt_longer_than_the_plan_takes(compiled: Any, make_engine: Any) -> None:
    engine, _ = make_engine(compiled("llama"))
    buffers = engine.alloc(1, CAPACITY)
    with pytest.raises(LatentError) as caught:
        engine.prefill(buffers, np.zeros((1, 41, 128), np.float32), np.array([41]))
    assert (caught.value.code, caught.value.expected) == (3002, "expected at most 40 positions, got 41")


def test_splice_outside_its_profile(compiled: Any, make_engine: Any) -> None:
    engine, _ = make_engine(compiled("llama"))
    ids = np.zeros((13, 4), np.int64)
    with pytest.raises(LatentError) as caught:
        engine.splice(ids, ids - 1, np.zeros((13, 1, 128), np.float32))
    assert caught.value.code == 3002
    assert "batch up to 12" in caught.value.expected


def test_plan_whose_cache_is_a_copy(compiled: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that would return the cache somewhere else is refused when it is loaded."""
    bundle = compiled("llama")
    engine, module = make_engine(bundle)
    real = module.Runtime.deserialize_cuda_engine

    def copies(self: Any, data: bytes) -> Any:
        made = real(self, data)
        made.aliased = False
        return made

    monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", copies)
    with pytest.raises(BundleError) as caught:
        engine.prefill(engine.alloc(1, 8), np.zeros((1, 2, 128), np.float32), np.array([2]))
    assert caught.value.code == 4012
    assert "memory of present_k.0" in caught.value.what


def test_buffers_of_another_engine(compiled: Any, make_engine: Any) -> None:
    bundle = compiled("llama")
    engine, _ = make_engine(bundle)
    with pytest.raises(TypeError, match="another engine"):
        engine.prefill(OrtCpuEngine(bundle, threads=1).alloc(1, 8), np.ones((1, 2, 128), np.float32), np.array([2]))


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 2, 8, 9, 33, 200, 257, 600)] == [1, 8, 8, 32, 64, 256, 512, 768]
