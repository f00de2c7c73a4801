"""Codec fsq from text to answer, on the toy engine with a quantiser of 16 codes of 4 levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentwire.core.errors import BundleError, FrameError, InputError, LatentError, LatentWireError
from latentwire.engines.opening import open_engine
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime import fsq, message, quantise, wire
from latentwire.runtime.codec import Codec
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import COMPRESS_PARTS, GENERATE_PARTS, Pipeline

from .conftest import TEXTS

FSQ = CompressOptions(codec="fsq", on_too_long="chunk")
QUESTIONS = ["When was it opened?", "At how many degrees?", "What?", "Wo?"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("toy"), quantiser=True).path


@pytest.fixture
def fsq_pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(bundle) as opened:
        yield opened


def test_a_frame_carries_four_bytes_a_latent(fsq_pipe: Pipeline) -> None:
    (data,) = fsq_pipe.compress([TEXTS[1]], FSQ)
    frame = wire.unpack(data)
    assert (frame.codec, frame.profile, frame.m, frame.d_z) == (Codec.FSQ, 1, 8, 8)
    assert frame.model_id == fsq_pipe.bundle.manifest.encoder.model_id
    assert len(data) == 24 + 4 * 8


def test_what_is_read_is_what_the_quantiser_made(fsq_pipe: Pipeline) -> None:
    """The codes of a frame are those of its latents, and the answer is that of the dequantised latents."""
    engine = fsq_pipe.engine
    f16 = message.unpack(fsq_pipe.compress([TEXTS[0]], CompressOptions(codec="f16", on_too_long="chunk"))[0])
    data = fsq_pipe.compress([TEXTS[0]], FSQ)[0]
    found = message.unpack(data)
    assert found.is_codes
    assert len(found.frames) == len(f16.frames) > 1
    codes = found.codes()
    # f16 rounds latents a little before they are quantised here, so a code on an edge may move by one level.
    again = engine.quantise(f16.z()[None])[0]
    assert np.mean(again == codes) > 0.99
    z = quantise.to_latents(engine, codes)
    np.testing.assert_array_equal(z, engine.dequantise(codes[None].astype(np.int64))[0])
    assert engine.quantise(z[None])[0].shape == codes.shape
    answers = fsq_pipe.generate([data] * 2, QUESTIONS[:2])
    assert answers == [fsq_pipe.generate([data], [q])[0] for q in QUESTIONS[:2]]


def test_codes_decide_the_answer(fsq_pipe: Pipeline) -> None:
    frames = fsq_pipe.compress(TEXTS, FSQ)
    answers = fsq_pipe.generate(frames, [QUESTIONS[0]] * len(TEXTS))
    assert len({*answers}) > 1


def test_halves_of_a_pipeline_load_what_they_need(bundle: Path) -> None:
    with Pipeline.open(bundle, parts=COMPRESS_PARTS) as sender, Pipeline.open(bundle, parts=GENERATE_PARTS) as reader:
        assert reader.generate(sender.compress([TEXTS[1]], FSQ), ["What?"])


def test_a_bundle_without_quantiser_refuses_before_it_encodes(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pipe.engine, "encode", never)
    with pytest.raises(InputError, match=r"LW-2111 .*no quantiser"):
        pipe.compress([TEXTS[1]], FSQ)
    with pytest.raises(BundleError, match=r"LW-4008 .*no quantiser"):
        pipe.engine.quantise(np.zeros((1, 1, 8), np.float32))
    with pytest.raises(BundleError, match=r"LW-4008 .*no quantiser"):
        pipe.engine.dequantise(np.zeros((1, 1, 16), np.int64))


def test_a_frame_of_codes_needs_its_quantiser(pipe: Pipeline) -> None:
    codes = np.zeros((3, 16), np.uint8)
    data = message.from_codes([codes], 8, pipe.bundle.manifest.encoder.model_id).pack()
    with pytest.raises(FrameError, match="LW-1107"):
        pipe.generate([data], ["What?"])


def test_codes_of_another_width_are_no_codes_of_this_bundle(fsq_pipe: Pipeline) -> None:
    data = message.from_codes([np.zeros((3, 20), np.uint8)], 8, fsq_pipe.bundle.manifest.encoder.model_id).pack()
    with pytest.raises(LatentError, match="LW-3002"):
        fsq_pipe.generate([data], ["What?"])


def test_no_profile_has_this_many_codes() -> None:
    assert [fsq.profile_of(n) for n in (16, 20)] == [1, 2]
    with pytest.raises(FrameError, match="LW-1107"):
        fsq.profile_of(17)


def test_a_failed_chunk_stays_where_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(bundle)
    monkeypatch.setattr(quantise, "BLOCK", 3)
    z = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    error: LatentWireError = LatentError(3001, "broken")
    found = quantise.to_codes(engine, [z, error, z[:2]])
    assert found[1] is error
    np.testing.assert_array_equal(found[0], engine.quantise(z[None])[0])
    np.testing.assert_array_equal(found[2], found[0][:2])  # type: ignore[index]
    assert quantise.to_codes(engine, [error]) == [error]
