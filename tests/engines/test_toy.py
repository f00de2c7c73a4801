"""The toy keeps every rule of the interface that real engines keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from latentwire.core.errors import BundleError, EnvironmentFault, LatentError
from latentwire.engines.base import Engine
from latentwire.engines.byte_tokenizer import BOS, EOS
from latentwire.engines.opening import open_engine
from latentwire.engines.toy import ToyEngine, write_toy_bundle


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_engine(write_toy_bundle(tmp_path / "toy").path)


def prompts_of(engine: Engine, texts: list[bytes]) -> tuple[Any, Any]:
    """Right-padded embeddings and lengths: BOS, two latents, the task rows, then the text."""
    size = max(map(len, texts)) + 5
    ids, rows = np.zeros((len(texts), size), np.int64), np.full((len(texts), size), -1)
    for b, text in enumerate(texts):
        ids[b, 0] = BOS
        rows[b, 1:5] = [0, 1, 4, 5]
        ids[b, 5 : 5 + len(text)] = list(text)
    z = engine.encode(ids[:, -4:], np.full(len(texts), 4), 4)
    return engine.splice(ids, rows, engine.adapt(z)), np.array([len(t) + 5 for t in texts])


def run(engine: Engine, embeds: Any, lengths: Any, steps: int, capacity: int = 64) -> Any:
    buffers = engine.alloc(len(embeds), capacity)
    engine.prefill(buffers, embeds, lengths)
    tokens = [buffers.next_token.copy()]
    for _ in range(steps - 1):
        engine.decode(buffers)
        tokens.append(buffers.next_token.copy())
    return np.stack(tokens, axis=1)


def test_encode_masks_what_a_short_text_lacks(engine: Engine) -> None:
    ids = np.arange(20, dtype=np.int64).reshape(2, 10)
    z = engine.encode(ids, np.array([10, 3]), 8)
    assert z.shape == (2, 8, 8)
    assert z.dtype == np.float32
    assert not z[1, 3:].any()
    padded = np.concatenate([ids, np.full((2, 5), 99)], axis=1)
    np.testing.assert_array_equal(engine.encode(padded, np.array([10, 3]), 8), z)


def test_batch_padding_and_cache_change_nothing(engine: Engine) -> None:
    texts = [b"a longer question?", b"why?", b""]
    embeds, lengths = prompts_of(engine, texts)
    together = run(engine, embeds, lengths, 9)
    for b, length in enumerate(lengths):
        alone = embeds[b : b + 1, :length]
        assert run(engine, alone, lengths[b : b + 1], 9).tolist() == together[b : b + 1].tolist()
        for step in range(9):  # no cache: the whole text again each time
            assert run(engine, alone, np.array([alone.shape[1]]), 1).tolist() == [[together[b, step]]]
            token = engine.splice(
                together[b : b + 1, step : step + 1], np.array([[-1]]), np.zeros((1, 1, 16), np.float32)
            )
            alone = np.concatenate([alone, token], axis=1)


def test_answers_are_printable_and_differ(engine: Engine) -> None:
    tokens = run(engine, *prompts_of(engine, [b"one", b"another", b"third"]), 30)
    assert len({tuple(row) for row in tokens.tolist()}) == 3
    assert all(32 <= t < 127 or t in (10, EOS) for t in tokens.ravel())


def test_tokenizer_is_byte_for_byte(engine: Engine) -> None:
    tokenizer = Tokenizer.from_file(str(engine.bundle.file("tokenizer.json")))
    text = "naïve 日本語\n\ttext 🙂 <eos>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == [*text.removesuffix("<eos>").encode(), EOS]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.token_to_id("<bos>") == BOS


def test_aliases_name_graph_tensors(engine: Engine) -> None:
    spec = engine.io_spec()["decoder"]
    outputs, inputs = {t.name for t in spec.outputs}, {t.name for t in spec.inputs}
    assert set(engine.aliases()) <= outputs
    assert set(engine.aliases().values()) <= inputs
    assert len(engine.aliases()) == 4


Bad = Callable[[ToyEngine], object]


@pytest.mark.parametrize(
    "bad",
    [
        lambda e: e.encode(np.zeros((1, 4), np.int32), np.array([4]), 4),
        lambda e: e.encode(np.zeros(4, np.int64), np.array([4]), 4),
        lambda e: e.encode(np.zeros((2, 4), np.int64), np.array([4]), 4),
        lambda e: e.encode(np.zeros((1, 4), np.int64), np.array([0]), 4),
        lambda e: e.encode(np.zeros((1, 4), np.int64), np.array([5]), 4),
        lambda e: e.encode(np.zeros((1, 65), np.int64), np.array([65]), 4),
        lambda e: e.adapt(np.zeros((1, 4, 7), np.float32)),
        lambda e: e.adapt(np.zeros((1, 4, 8), np.float64)),
        lambda e: e.splice(np.array([[258]]), np.array([[-1]]), np.zeros((1, 2, 16), np.float32)),
        lambda e: e.splice(np.array([[0]]), np.array([[2]]), np.zeros((1, 2, 16), np.float32)),
        lambda e: e.alloc(0, 8),
        lambda e: e.alloc(1, 0),
        lambda e: e.alloc(1, 2049),
        lambda e: e.prefill(e.alloc(1, 8), np.zeros((1, 9, 16), np.float32), np.array([9])),
        lambda e: e.prefill(e.alloc(1, 8), np.zeros((2, 4, 16), np.float32), np.array([4, 4])),
        lambda e: e.prefill(e.alloc(1, 8), np.zeros((1, 4, 16), np.float64), np.array([4])),
        lambda e: e.prefill(e.alloc(1, 8), np.zeros((1, 4, 16), np.float32), np.array([5])),
        lambda e: e.prefill(e.alloc(1, 8), np.zeros((1, 4, 16), np.float32), np.array([0])),
        lambda e: e.decode(e.alloc(1, 8)),
    ],
)
def test_wrong_shape_dtype_or_range(engine: ToyEngine, bad: Bad) -> None:
    with pytest.raises(LatentError) as caught:
        bad(engine)
    assert caught.value.code == 3002


def test_full_cache(engine: Engine) -> None:
    buffers = engine.alloc(2, 6)
    engine.prefill(buffers, np.ones((2, 5, 16), np.float32), np.array([5, 3]))
    engine.decode(buffers)
    with pytest.raises(LatentError) as caught:
        engine.decode(buffers)
    assert (caught.value.code, caught.value.where) == (3002, "batch row 0")


def test_no_number_is_an_error_with_its_row(engine: Engine) -> None:
    embeds = np.ones((3, 4, 16), np.float32)
    embeds[1, 2] = np.nan
    with pytest.raises(LatentError) as caught:
        engine.prefill(engine.alloc(3, 8), embeds, np.array([4, 4, 4]))
    assert caught.value.code == 3001
    assert caught.value.where == "logits of engine toy, batch row 1"


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        open_engine(write_toy_bundle(tmp_path / "toy").path, device="cuda")
    assert caught.value.code == 5001


def test_unknown_part_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown parts"):
        open_engine(write_toy_bundle(tmp_path / "toy").path, parts=["head"])


def test_file_the_bundle_does_not_list(engine: Engine) -> None:
    with pytest.raises(BundleError) as caught:
        engine.bundle.file("decoder.onnx")
    assert caught.value.code == 4008
