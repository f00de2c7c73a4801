"""Keys and values that latents put into the cache: in a batch as alone, in steps as at once, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, LatentError
from latentwire.engines.bundle import read_bundle
from latentwire.engines.opening import choose
from latentwire.engines.ort_parts import OrtParts
from latentwire.engines.prefix import Prefix, PrefixInfo, place, prefill_with, prefix_info
from latentwire.engines.toy import ToyEngine, write_toy_bundle

KINDS: dict[str, dict[str, Any]] = {"deep_prefix": {"groups": 2}, "coprocessor": {}}
LATENTS = (5, 2, 3)
LENGTHS = np.array([9, 7, 12])


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> ToyEngine:
    return ToyEngine(write_toy_bundle(tmp_path / "b", features={request.param: KINDS[request.param]}))


def _info(engine: ToyEngine) -> PrefixInfo:
    found = prefix_info(engine.bundle.manifest)
    assert found is not None
    return found


def _case(engine: ToyEngine, rows: slice = slice(None)) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Prefix]:
    """Prompts f32 [3,12,16], their lengths, and slots of some rows."""
    rng, info = np.random.default_rng(0), _info(engine)
    embeds = rng.standard_normal((3, 12, 16)).astype(np.float32)
    z = rng.standard_normal((3, 5, 8)).astype(np.float32)
    for b, m in enumerate(LATENTS):
        z[b, m:] = 0
    counts = np.array([info.slots(m) for m in LATENTS])
    heads = np.array([1 + m if info.onto else 1 for m in LATENTS])
    keys, values = engine.prefix(z)
    return embeds[rows], LENGTHS[rows], Prefix(keys[rows], values[rows], counts[rows], heads[rows], info.onto)


def _answer(engine: ToyEngine, rows: slice, steps: int = 3) -> np.ndarray[Any, Any]:
    embeds, lengths, prefix = _case(engine, rows)
    buffers = engine.alloc(len(lengths), 32)
    prefill_with(engine, buffers, embeds, lengths, prefix)
    out = [np.array(buffers.logits)]
    for _ in range(steps):
        engine.decode(buffers)
        out.append(np.array(buffers.logits))
    added = 0 if prefix.onto else prefix.counts
    np.testing.assert_array_equal(buffers.lengths, lengths + added + steps)
    buffers.check_guards()
    return np.stack(out, axis=1)


def test_a_batch_answers_as_its_rows_alone(engine: ToyEngine) -> None:
    whole = _answer(engine, slice(None))
    for b in range(3):
        np.testing.assert_allclose(whole[b : b + 1], _answer(engine, slice(b, b + 1)), atol=1e-4, rtol=1e-4)


def test_slots_are_read(engine: ToyEngine) -> None:
    embeds, lengths, _ = _case(engine)
    buffers = engine.alloc(3, 32)
    engine.prefill(buffers, embeds, lengths)
    assert np.abs(buffers.logits - _answer(engine, slice(None))[:, 0]).max() > 0.1


def test_what_is_read_behind_the_cache_is_what_is_read_at_once(engine: ToyEngine) -> None:
    embeds, lengths, _ = _case(engine)
    at_once, parts = engine.alloc(3, 32), engine.alloc(3, 32)
    engine.prefill(at_once, embeds, lengths)
    engine.prefill(parts, embeds[:, :4], np.array([4, 4, 4]))
    engine.extend(parts, embeds[:, 4:], lengths - 4)
    np.testing.assert_allclose(parts.logits, at_once.logits, atol=1e-4, rtol=1e-4)


def test_without_bos_slots_come_first(engine: ToyEngine) -> None:
    embeds, lengths, prefix = _case(engine)
    if prefix.onto:
        pytest.skip("a head holds the latents at least")
    first = Prefix(prefix.keys, prefix.values, prefix.counts, np.zeros(3, np.int64), onto=False)
    buffers = engine.alloc(3, 32)
    engine.prefill(buffers, embeds, lengths)  # what stood there before is forgotten
    prefill_with(engine, buffers, embeds, lengths, first)
    np.testing.assert_array_equal(buffers.lengths, lengths + prefix.counts)


def test_what_does_not_fit_is_refused(engine: ToyEngine) -> None:
    embeds, lengths, prefix = _case(engine)
    for wrong, capacity, words in (
        (Prefix(prefix.keys, prefix.values, prefix.counts, lengths, prefix.onto), 32, "nothing is left"),
        (prefix, 12, "behind what the cache holds"),
    ):
        with pytest.raises(LatentError, match=words) as caught:
            prefill_with(engine, engine.alloc(3, capacity), embeds, lengths, wrong)
        assert caught.value.code == 3002
    buffers = engine.alloc(3, 2)
    buffers.lengths[:] = 1
    with pytest.raises(LatentError, match="slots do not fit") as caught:
        place(buffers, prefix)
    assert caught.value.code == 3002


def test_a_bundle_without_the_part_is_refused(tmp_path: Path) -> None:
    engine = ToyEngine(write_toy_bundle(tmp_path / "plain"))
    assert prefix_info(engine.bundle.manifest) is None
    with pytest.raises(BundleError, match="puts nothing into the cache") as caught:
        engine.prefix(np.zeros((1, 2, 8), np.float32))
    assert caught.value.code == 4008


def test_engines_whose_cache_is_out_of_reach_are_refused(engine: ToyEngine) -> None:
    bundle = read_bundle(engine.bundle.path)
    real = replace(bundle, manifest=replace(bundle.manifest, llm=replace(bundle.manifest.llm, family="llama")))
    assert choose(real, "cpu", "auto") == "ort"
    assert choose(real, "cuda", "torch-ref") == "torch-ref"
    with pytest.raises(EnvironmentFault, match="go into the cache") as caught:
        choose(real, "cuda", "auto")
    assert caught.value.code == 5001
    assert choose(real, "cuda", "auto", ("encoder",)) == "ort"
    embeds, lengths, prefix = _case(engine)
    parts = OrtParts(real)
    buffers = engine.alloc(3, 32)
    with pytest.raises(EnvironmentFault, match="cannot put") as caught:
        parts.extend(buffers, embeds, lengths)
    assert caught.value.code == 5001
    with pytest.raises(EnvironmentFault, match="cannot put") as caught:
        parts.insert(buffers, prefix)
    assert caught.value.code == 5001
