"""The reference engine runs the same file as ONNX Runtime to the same numbers, in every dtype, and shows any tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentwire.core.errors import BundleError, LatentError
from latentwire.engines.base import Engine
from latentwire.engines.bundle import Bundle, describe_files
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.torch_ref import TorchRefEngine
from latentwire.export.attention import Flavour
from latentwire.export.drive import embed, greedy, lengths_of
from latentwire.export.precision import PRECISIONS

KINDS = ["llama", "llama-tied", "llama-3.1", "qwen2", "qwen2-tied", "gemma3"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_onnx_runtime(kind: str, tiny_decoder: Callable[[str], Bundle], byte_prompts: list[list[int]]) -> None:
    """Logits of a ragged prefill and of three steps after it; float32, absolute tolerance 2e-5."""
    prompts = byte_prompts[:8]
    worst, mean = 0.0, []
    engines: list[Engine] = [OrtCpuEngine(tiny_decoder(kind), threads=1), TorchRefEngine(tiny_decoder(kind), threads=1)]
    held = [engine.alloc(8, 64) for engine in engines]
    for engine, buffers in zip(engines, held, strict=True):
        engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
    for _ in range(4):
        assert held[0].next_token.tolist() == held[1].next_token.tolist()
        difference = np.abs(held[0].logits - held[1].logits)
        worst = max(worst, float(difference.max()))
        mean.append(float(difference.mean()))
        for engine, buffers in zip(engines, held, strict=True):
            engine.decode(buffers)
    print(f"{kind}: logits max {worst:.2g}, mean {np.mean(mean):.2g}")
    assert worst < 2e-5
    held[1].check_guards()


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 10 * 2**-11), ("bf16", 10 * 2**-8)])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_other_dtypes_round_and_nothing_else(
    kind: str,
    precision: str,
    limit: float,
    precise: Callable[..., Bundle],
    tiny_decoder: Callable[[str], Bundle],
    byte_prompts: list[list[int]],
) -> None:
    """The residual stream after the last layer stays within ten roundings of the float32 one, in relative L2."""
    prompts, watch = byte_prompts[:4], ["hidden.0", "hidden.3", "past_k.2"]
    states = []
    for bundle in (tiny_decoder(kind), precise(kind, precision)):
        engine = TorchRefEngine(bundle, threads=1, watch=watch)
        buffers = engine.alloc(4, 64)
        engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
        engine.decode(buffers)
        assert sorted(engine.watched) == sorted(watch)
        assert engine.watched["hidden.3"].shape == (4, 1, 48)
        assert engine.watched["past_k.2"].shape == buffers.cache["past_k.2"].shape
        states.append(engine.watched["hidden.3"])
        buffers.check_guards()
        assert buffers.cache["past_k.0"].dtype.name == bundle.manifest.llm.dtype
    assert bundle.manifest.llm.dtype == PRECISIONS[precision].dtype
    error = float(np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[0]))
    print(f"{kind} {precision}: relative L2 {error:.2g}")
    assert 0 < error < limit


def test_float16_equals_onnx_runtime(precise: Callable[..., Bundle], byte_prompts: list[list[int]]) -> None:
    """Two engines, one float16 file: logits within a few roundings, same tokens."""
    bundle = precise("llama", "fp16")
    found = []
    for engine in (OrtCpuEngine(bundle, threads=1), TorchRefEngine(bundle, threads=1)):
        buffers = engine.alloc(6, 64)
        engine.prefill(buffers, embed(engine, byte_prompts[:6]), lengths_of(byte_prompts[:6]))
        assert buffers.cache["past_v.1"].dtype == np.float16
        found.append(buffers.logits.copy())
    difference = np.abs(found[0] - found[1])
    print(f"max {difference.max():.2g}, mean {difference.mean():.2g}")
    assert difference.max() < 0.05


def test_cache_elsewhere_shows(tiny_decoder: Callable[[str], Bundle], byte_prompts: list[list[int]]) -> None:
    """The planted fault: ``present`` in other memory than ``past``. The next step misses what was written."""
    engine = TorchRefEngine(tiny_decoder("llama"), threads=1)
    good = greedy(engine, byte_prompts[:4], 4)
    buffers = engine.alloc(4, 64)
    buffers.present["present_k.1"] = buffers.present["present_k.1"].clone()
    engine.prefill(buffers, embed(engine, byte_prompts[:4]), lengths_of(byte_prompts[:4]))
    tokens = [buffers.next_token.copy()]
    for _ in range(3):
        engine.decode(buffers)
        tokens.append(buffers.next_token.copy())
    assert np.stack(tokens, axis=1)[:, 0].tolist() == good[:, 0].tolist()
    assert np.stack(tokens, axis=1).tolist() != good.tolist()


def test_unknown_tensor_and_buffers_of_another_engine(
    tiny_decoder: Callable[[str], Bundle], byte_prompts: list[list[int]]
) -> None:
    engine = TorchRefEngine(tiny_decoder("llama"), threads=1, watch=["hidden.99"])
    buffers = engine.alloc(1, 64)
    with pytest.raises(KeyError, match=r"hidden\.99"):
        engine.prefill(buffers, embed(engine, byte_prompts[:1]), lengths_of(byte_prompts[:1]))
    other = OrtCpuEngine(tiny_decoder("llama"), threads=1).alloc(1, 64)
    with pytest.raises(TypeError, match="another engine"):
        engine.prefill(other, embed(engine, byte_prompts[:1]), lengths_of(byte_prompts[:1]))


def test_operator_nobody_knows(tmp_path: Path, tiny_decoder: Callable[[str], Bundle]) -> None:
    import onnx

    good = tiny_decoder("llama")
    model = onnx.load(str(good.path / "decoder.onnx"), load_external_data=False)
    model.graph.node[0].op_type = "Teleport"
    (tmp_path / "decoder.onnx").write_bytes(model.SerializeToString())
    engine = TorchRefEngine(Bundle(tmp_path, replace(good.manifest, files=describe_files(tmp_path))))
    with pytest.raises(BundleError) as caught:
        engine.graph("decoder")
    assert caught.value.code == 4001
    assert "Teleport" in caught.value.expected
    (tmp_path / "decoder.onnx").write_bytes(b"\xff" * 9)
    with pytest.raises(BundleError, match="not an ONNX file"):
        engine.graph("decoder")
    with pytest.raises(BundleError) as caught:
        TorchRefEngine(good, parts=["splice"]).graph("decoder")
    assert caught.value.code == 4008


@pytest.mark.parametrize("flavour", ["mask", "gqa"])
def test_other_flavours(
    flavour: Flavour,
    precise: Callable[..., Bundle],
    tiny_decoder: Callable[[str], Bundle],
    byte_prompts: list[list[int]],
) -> None:
    """Tokens of a ragged batch equal those of the dual flavour."""
    engine = TorchRefEngine(precise("gemma3", "fp32", flavour), threads=1)
    want = greedy(TorchRefEngine(tiny_decoder("gemma3"), threads=1), byte_prompts[:6], 4)
    assert greedy(engine, byte_prompts[:6], 4).tolist() == want.tolist()


@pytest.mark.parametrize("make", [OrtCpuEngine, TorchRefEngine])
def test_fixed_capacity(
    make: Callable[..., OrtCpuEngine | TorchRefEngine], tiny_decoder: Callable[[str], Bundle]
) -> None:
    """A bundle whose graph has a fixed cache gives that many slots, or says that the prompt is too long."""
    good = tiny_decoder("llama")
    engine = make(replace(good, manifest=replace(good.manifest, capacity=48)), threads=1)
    buffers = engine.alloc(2, 20)
    assert (buffers.capacity, buffers.cache["past_k.0"].shape[2]) == (48, 48)
    with pytest.raises(LatentError, match="48 slots a row, got 49") as caught:
        engine.alloc(2, 49)
    assert caught.value.code == 3002
