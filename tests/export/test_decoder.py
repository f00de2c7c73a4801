"""The exported decoder computes what transformers computes, for every family, however it is batched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.backends import backends
from latentwire.export.drive import embed, greedy
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend
from latentwire.export.probe import ProbeEngine
from latentwire.export.recorded import Recorded
from latentwire.models.folder import ModelFolder

KINDS = ["llama", "llama-tied", "llama-3.1", "qwen2", "qwen2-tied", "gemma3"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(
    kind: str,
    tiny: Callable[[str], ModelFolder],
    tiny_decoder: Callable[[str], Bundle],
    measured: Callable[[str], Recorded],
) -> None:
    """Every gate on every backend that is here; the same tolerances as for real models."""
    bundle, recorded = tiny_decoder(kind), measured(kind)
    assert check_weights(bundle, tiny(kind)).verdict == "passed"
    there, _ = backends(bundle, 1)
    for backend in there:
        found = {f.gate: f for f in check_backend(backend, bundle, recorded)}
        for finding in found.values():
            print(kind, finding)
        assert all(f.verdict == "passed" for f in found.values())


@pytest.fixture(params=["llama-3.1", "gemma3"])
def engine(request: pytest.FixtureRequest, tiny_decoder: Callable[[str], Bundle]) -> OrtCpuEngine:
    return OrtCpuEngine(tiny_decoder(request.param), threads=1)


def test_batch_equals_single(engine: OrtCpuEngine, byte_prompts: list[list[int]]) -> None:
    """Ragged, right-padded batches and single prompts without padding give the same tokens."""
    together = greedy(engine, byte_prompts, 6)
    alone = np.concatenate([greedy(engine, [p], 6) for p in byte_prompts])
    assert together.tolist() == alone.tolist()


def test_padding_does_not_count(engine: OrtCpuEngine, byte_prompts: list[list[int]]) -> None:
    """More padding, filled with anything, and a larger cache leave the logits as they are."""
    prompts = byte_prompts[:8]
    lengths = np.array([len(p) for p in prompts], np.int64)
    embeds = embed(engine, prompts)
    junk = np.random.default_rng(0).standard_normal((8, 9, embeds.shape[2])).astype(np.float32) * 50
    logits = []
    for given, capacity in ((embeds, 60), (np.concatenate([embeds, junk], axis=1), 90)):
        buffers = engine.alloc(8, capacity)
        engine.prefill(buffers, given, lengths)
        engine.decode(buffers)
        logits.append(buffers.logits.copy())
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)


def test_cached_equals_uncached(engine: OrtCpuEngine, byte_prompts: list[list[int]]) -> None:
    """Each token from the cache is the token of a fresh prefill over everything before it."""
    prompts = byte_prompts[:8]
    cached = greedy(engine, prompts, 6)
    longer = [list(p) for p in prompts]
    for step in range(6):
        again = greedy(engine, longer, 1)[:, 0]
        assert again.tolist() == cached[:, step].tolist()
        longer = [[*p, int(t)] for p, t in zip(longer, again, strict=True)]


def test_buffers_can_be_used_again(engine: OrtCpuEngine, byte_prompts: list[list[int]]) -> None:
    """A second batch in the same memory does not see the first."""
    first, second = byte_prompts[:6], byte_prompts[6:12]
    buffers = engine.alloc(6, 64)
    found = []
    for prompts in (second, first, second):
        engine.prefill(buffers, embed(engine, prompts), np.array([len(p) for p in prompts], np.int64))
        engine.decode(buffers)
        found.append(buffers.logits.copy())
    np.testing.assert_array_equal(found[0], found[2])


def test_cache_is_written_in_place(
    tiny_decoder: Callable[[str], Bundle], byte_prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime warns when it has to copy the cache; it must not."""
    engine = OrtCpuEngine(tiny_decoder("llama"), threads=1)
    greedy(engine, byte_prompts[:4], 4)
    assert "in-place" not in capfd.readouterr().err
    probe = ProbeEngine(tiny_decoder("llama"), threads=1)
    greedy(probe, byte_prompts[:4], 4)
    assert capfd.readouterr().err == ""


def test_copied_cache_would_be_noticed(
    tiny_decoder: Callable[[str], Bundle], byte_prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    """The planted fault: outputs bound to other memory than inputs. The warning is how it shows."""
    engine = OrtCpuEngine(tiny_decoder("llama"), threads=1)
    buffers = engine.alloc(2, 64)
    for name in buffers.cache:
        buffers.binding.bind_output(name.replace("past", "present"), "cpu")
    engine.prefill(buffers, embed(engine, byte_prompts[:2]), np.array([len(p) for p in byte_prompts[:2]], np.int64))
    assert "in-place optimization not activated" in capfd.readouterr().err


def test_only_new_slots_are_written(engine: OrtCpuEngine, byte_prompts: list[list[int]]) -> None:
    """Guard words at either end, and every slot after the last written one, keep their first value."""
    from latentwire.engines.buffers import SENTINEL

    prompts = byte_prompts[:4]
    embeds, lengths = embed(engine, prompts), np.array([len(p) for p in prompts], np.int64)
    buffers = engine.alloc(4, 64)
    engine.prefill(buffers, embeds, lengths)
    for _ in range(3):
        engine.decode(buffers)
    buffers.check_guards()
    for name, cache in buffers.cache.items():
        for b, used in enumerate(np.maximum(embeds.shape[1], lengths + 3)):
            assert (cache[b, :, used:] == SENTINEL).all(), name
            assert (cache[b, :, :used] != SENTINEL).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_graph_passes_the_full_checker(kind: str, tiny_decoder: Callable[[str], Bundle]) -> None:
    path = tiny_decoder(kind).path
    for name in ("decoder.onnx", "splice.onnx"):
        onnx.checker.check_model(str(path / name), full_check=True)
        model = onnx.load(str(path / name), load_external_data=False)
        assert (model.ir_version, model.opset_import[0].version) == (11, 24)


def test_tied_table_is_stored_once(tiny_decoder: Callable[[str], Bundle]) -> None:
    from safetensors import safe_open

    for kind, tied in (("llama-tied", True), ("qwen2", False)):
        with safe_open(tiny_decoder(kind).path / "decoder.safetensors", "numpy") as file:
            assert ("llm.head" in file.keys()) is not tied  # noqa: SIM118
