"""The shipped checkpoint on the embedded language model, by ONNX Runtime: answers do not depend on neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from latentwire.core.errors import ModelError
from latentwire.runtime import message, wire
from latentwire.runtime.answer import Answer
from latentwire.runtime.message import Message
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline

F16 = CompressOptions(codec="f16")


def read(name: str) -> list[dict[str, str]]:
    data = resources.files("latentwire.runtime.demo_documents").joinpath(name).read_text("utf-8")
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*[d["text"] for d in read("documents.jsonl")][:3], "Short text."]


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [*[q["question"] for q in read("questions.jsonl")][:3], "What is it?"]


@pytest.fixture(scope="module")
def real(smollm2_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(smollm2_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def frames(real: Pipeline, texts: list[str]) -> list[bytes]:
    return real.compress(texts, F16)


def test_frames_hold_the_encoder_s_latents(real: Pipeline, texts: list[str], frames: list[bytes]) -> None:
    encoder = real.bundle.manifest.encoder
    for text, data in zip(texts, frames, strict=True):
        frame = wire.unpack(data, model_id=encoder.model_id)
        tokens = len(real.encoder_tokenizer.encode(text))
        assert (frame.m, frame.d_z) == (min(encoder.latents, tokens), encoder.d_z)
        assert len(data) == 24 + 2 * frame.m * frame.d_z


def test_latents_hardly_depend_on_the_batch(real: Pipeline, texts: list[str], frames: list[bytes]) -> None:
    worst = 0.0
    for text, together in zip(texts, frames, strict=True):
        (alone,) = real.compress([text], F16)
        a, b = message.unpack(alone).z(), message.unpack(together).z()
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    print(f"latents alone against batch of {len(texts)}: max relative difference {worst:.2e}")
    assert worst < 5e-3  # one step of f16 near the largest value is 1e-3


@pytest.mark.parametrize("kind", ["latents", "full text"])
def test_answers_do_not_depend_on_neighbours(
    real: Pipeline, texts: list[str], questions: list[str], frames: list[bytes], kind: str
) -> None:
    contexts: list[bytes | Message | str] = [*frames] if kind == "latents" else [*texts]
    options = GenerateOptions(max_new_tokens=12)
    together = real.answers(contexts, questions, options)
    assert all(isinstance(a, Answer) for a in together)
    alone = [real.answers([c], [q], options)[0] for c, q in zip(contexts, questions, strict=True)]
    backwards = real.answers(contexts[::-1], questions[::-1], GenerateOptions(max_new_tokens=12, batch_size=2))
    assert together == alone
    assert together == backwards[::-1]


def test_streaming_gives_the_same_text(real: Pipeline, questions: list[str], frames: list[bytes]) -> None:
    assert "".join(real.stream(frames[0], questions[0])) == real.generate(frames[:1], questions[:1])[0]


def test_codecs_travel(real: Pipeline, texts: list[str], questions: list[str]) -> None:
    f16, i8 = (real.compress(texts, CompressOptions(codec=codec)) for codec in ("f16", "i8"))
    for wide, narrow in zip(f16, i8, strict=True):
        a, b = message.unpack(wide).z(), message.unpack(narrow).z()
        assert len(narrow) < 0.55 * len(wide)
        assert (np.abs(a - b) <= np.abs(a).max(axis=1, keepdims=True) / 127).all()
    plain = real.compress(texts, CompressOptions(codec="text"))
    assert real.generate(plain[:2], questions[:2]) == real.generate_text(texts[:2], questions[:2])


def test_long_texts_in_chunks(real: Pipeline, texts: list[str]) -> None:
    long = "\n\n".join(texts * 2)
    (data,) = real.compress([long], CompressOptions(on_too_long="chunk"))
    found = message.unpack(data)
    assert len(found.frames) >= 2
    (answer,) = real.answers([data], ["What is it about?"])
    assert isinstance(answer, Answer)
    assert answer.context_positions == found.latents == real.bundle.manifest.encoder.latents * len(found.frames)


def test_a_toy_frame_is_refused(real: Pipeline, toy_bundle: Path) -> None:
    with Pipeline.open(toy_bundle) as toy, pytest.raises(ModelError) as caught:
        real.generate(toy.compress(["a text"]), ["What?"])
    assert caught.value.code == 3101
