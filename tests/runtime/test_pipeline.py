"""Text to frames to answers on the toy engine."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import FrameError, InputError, LatentError, LatentWireError, ModelError, RowError
from latentwire.runtime import message, wire
from latentwire.runtime.answer import Answer
from latentwire.runtime.codec import Codec
from latentwire.runtime.compress import Compressed
from latentwire.runtime.message import Message
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import COMPRESS_PARTS, Pipeline

from .conftest import TEXTS

CHUNK = CompressOptions(on_too_long="chunk")
LONG = "One two three four five. " * 9  # 225 bytes: 4 windows of 64
QUESTIONS = ["When was it opened?", "At how many degrees?", "What?", "Wo?"]


def test_compress_then_generate(pipe: Pipeline) -> None:
    frames = pipe.compress(TEXTS, CHUNK)
    answers = pipe.generate(frames, QUESTIONS)
    assert len(answers) == 4
    assert answers == pipe.generate(frames, QUESTIONS)
    assert all("\n" not in a for a in answers)
    assert len({*answers}) > 1


def test_frames_say_what_they_hold(pipe: Pipeline) -> None:
    (data,) = pipe.compress([TEXTS[1]], CompressOptions(codec="f16"))
    frame = wire.unpack(data)
    assert (frame.codec, frame.m, frame.d_z, frame.flags) == (1, 8, 8, 0)
    assert frame.model_id == pipe.bundle.manifest.encoder.model_id
    assert len(data) == 24 + 2 * 8 * 8


def test_a_text_shorter_than_m_tokens_has_fewer_latents(pipe: Pipeline) -> None:
    (data,) = pipe.compress(["Short."])
    assert wire.unpack(data).m == 6


def test_latents_option(pipe: Pipeline) -> None:
    (data,) = pipe.compress([TEXTS[1]], CompressOptions(latents=3))
    assert wire.unpack(data).m == 3
    with pytest.raises(InputError) as caught:
        pipe.compress([TEXTS[1]], CompressOptions(latents=65))
    assert caught.value.code == 2111


@pytest.mark.parametrize("bad", [{"latents": 0}, {"batch_size": 0}, {"codec": "lm"}, {"on_too_long": "cut"}])
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        CompressOptions(**bad)
    assert caught.value.code == 2111
    assert next(iter(bad)) in caught.value.where


def test_generate_options_are_checked() -> None:
    cases: list[dict[str, Any]] = [{"max_new_tokens": 0}, {"stop": ("",)}, {"batch_size": 0}]
    for bad in cases:
        with pytest.raises(InputError) as caught:
            GenerateOptions(**bad)
        assert caught.value.code == 2111


def test_too_long_error(pipe: Pipeline) -> None:
    with pytest.raises(RowError) as caught:
        pipe.compress(["fine", LONG])
    assert caught.value.code == 2006
    assert caught.value.where == "text 1"
    assert "64" in caught.value.expected
    assert "225" in caught.value.expected
    for choice in ("truncate", "chunk", "shorten"):
        assert choice in caught.value.fix


def test_too_long_truncate(pipe: Pipeline) -> None:
    (found,) = pipe.compress_rows([LONG], CompressOptions(on_too_long="truncate"))
    assert isinstance(found, Compressed)
    assert found.truncated
    assert found.tokens == 225
    assert found.message.frames[0].flags == wire.TRUNCATED
    (short,) = pipe.compress([LONG[:64]])
    assert found.message.frames[0].payload == wire.unpack(short).payload


def test_too_long_chunk(pipe: Pipeline) -> None:
    (found,) = pipe.compress_rows([LONG], CHUNK)
    assert isinstance(found, Compressed)
    assert [f.chunk for f in found.message.frames] == [(i, 4) for i in range(4)]
    assert found.message.latents == 32
    assert not found.truncated
    (answer,) = pipe.answers([found.message.pack()], ["What?"])
    assert isinstance(answer, Answer)
    assert answer.context_positions == 32
    edges = [225 * i // 4 for i in range(5)]
    parts = [LONG[a:b] for a, b in pairwise(edges)]
    alone = [message.unpack(d).z() for d in pipe.compress(parts)]
    assert (found.message.z() == np.concatenate(alone)).all()


def test_chunks_must_be_complete_and_in_order(pipe: Pipeline) -> None:
    (data,) = pipe.compress([LONG], CHUNK)
    frames = wire.unpack_all(data)
    for wrong in (frames[:-1], frames[1:], frames[::-1], [frames[0], frames[0], *frames[2:]]):
        with pytest.raises(FrameError) as caught:
            message.unpack(b"".join(f.pack() for f in wrong))
        assert caught.value.code == 1109
    with pytest.raises(FrameError) as caught:
        message.unpack(pipe.compress(["a"])[0] * 2)
    assert caught.value.code == 1109


def test_chunks_of_two_encoders_do_not_mix(pipe: Pipeline, other_bundle: Path) -> None:
    frames = wire.unpack_all(pipe.compress([LONG], CHUNK)[0])
    with Pipeline.open(other_bundle) as other:
        foreign = wire.unpack_all(other.compress([LONG], CHUNK)[0])
    with pytest.raises(FrameError) as caught:
        Message((*frames[:3], foreign[3]))
    assert caught.value.code == 1109


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", 2005, "empty"),
        (" \n\t\u00a0", 2005, "white space"),
        ("\ufeff", 2005, "empty"),
        ("x" * ((16 << 20) + 1), 2007, "too large"),
        ("a\ud800b", 2009, "surrogate U+D800"),
    ],
)
def test_texts_that_cannot_be_sent_leave_their_neighbours_alone(
    pipe: Pipeline, text: str, code: int, says: str
) -> None:
    found = pipe.compress_rows(["before", text, "after"])
    assert isinstance(found[1], RowError)
    assert found[1].code == code
    assert says in found[1].what
    assert found[1].where.startswith("text 1")
    alone = pipe.compress(["before", "after"])
    assert [f.message.pack() for f in found if isinstance(f, Compressed)] == alone


def test_nul_is_kept_and_the_byte_order_mark_is_not(pipe: Pipeline) -> None:
    with_mark, without, with_nul = pipe.compress_rows(["\ufeffab", "ab", "a\0b"])
    assert isinstance(with_mark, Compressed)
    assert isinstance(with_nul, Compressed)
    assert with_mark == without
    assert (with_mark.text_bytes, with_nul.text_bytes) == (2, 3)


def test_special_tokens_in_a_text_are_plain_characters(pipe: Pipeline) -> None:
    assert pipe.tokenizer.encode("<eos>") == list(b"<eos>")
    assert pipe.tokenizer.encode_all(["<bos>", "a"]) == [list(b"<bos>"), [97]]


@pytest.mark.parametrize("codec", ["f16", "i8", "text"])
def test_answers_do_not_depend_on_neighbours(pipe: Pipeline, codec: Any) -> None:
    options = CompressOptions(codec=codec, on_too_long="chunk")
    frames = pipe.compress([*TEXTS, LONG], options)
    questions = [*QUESTIONS, "And now?"]
    together = pipe.answers(frames, questions)
    for batch_size in (1, 2, 3):
        assert pipe.answers(frames, questions, GenerateOptions(batch_size=batch_size)) == together
    backwards = pipe.answers(frames[::-1], questions[::-1])
    assert backwards[::-1] == together
    tiny_memory = GenerateOptions(kv_bytes=1)
    assert pipe.answers(frames, questions, tiny_memory) == together


def test_requests_share_batches(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, equal answers alone and in a batch could mean that nothing was ever batched."""
    sizes: list[int] = []
    prefill = pipe.engine.prefill

    def counted(buffers: Any, embeds: Any, lengths: Any) -> None:
        sizes.append(len(lengths))
        prefill(buffers, embeds, lengths)

    monkeypatch.setattr(pipe.engine, "prefill", counted)
    frames = pipe.compress([TEXTS[0]] * 7, CHUNK)
    pipe.generate(frames, ["When?"] * 7, GenerateOptions(batch_size=3))
    assert sizes == [3, 3, 1]


def test_latents_do_not_depend_on_neighbours(pipe: Pipeline) -> None:
    together = pipe.compress(TEXTS, CHUNK)
    assert together == [pipe.compress([t], CHUNK)[0] for t in TEXTS]


def test_full_text_equals_text_frames(pipe: Pipeline) -> None:
    frames = pipe.compress([*TEXTS, LONG], CompressOptions(codec="text"))
    questions = [*QUESTIONS, "And now?"]
    assert pipe.generate(frames, questions) == pipe.generate_text([*TEXTS, LONG], questions)
    (answer,) = pipe.answers([LONG], ["What?"])
    assert isinstance(answer, Answer)
    assert answer.context_positions == 225
    assert answer.prompt_positions == 1 + 225 + 2 + len("\nQuestion: What?\nAnswer:")


@pytest.mark.parametrize("text", [*TEXTS, LONG])
def test_streamed_pieces_are_the_answer(pipe: Pipeline, text: str) -> None:
    (frames,) = pipe.compress([text], CHUNK)
    options = GenerateOptions(max_new_tokens=40, stop=("\n", " the end"))
    (answer,) = pipe.generate([frames], ["What?"], options)
    assert "".join(pipe.stream(frames, "What?", options)) == answer


def test_3101_frame_of_another_encoder(pipe: Pipeline, other_bundle: Path) -> None:
    with Pipeline.open(other_bundle) as other:
        (foreign,) = other.compress(["text"])
    own = pipe.compress(["text"])[0]
    with pytest.raises(ModelError) as caught:
        pipe.generate([foreign], ["What?"])
    assert caught.value.code == 3101
    found = pipe.answers([own, foreign], ["What?", "What?"])
    assert isinstance(found[0], Answer)
    assert isinstance(found[1], ModelError)


def test_3002_latents_of_another_width(pipe: Pipeline) -> None:
    model = pipe.bundle.manifest.encoder.model_id
    frame = message.from_latents([np.ones((2, 4), np.float32)], Codec.F16, model)
    (found,) = pipe.answers([frame], ["What?"])
    assert isinstance(found, LatentError)
    assert found.code == 3002


def test_bad_frames_raise_and_leave_their_neighbours_alone(pipe: Pipeline) -> None:
    good = pipe.compress(["text"])[0]
    found = pipe.answers([good, good[:-1], b"not a frame at all, no", good], ["What?"] * 4)
    assert [getattr(f, "code", 0) for f in found] == [0, 1102, 1101, 0]
    with pytest.raises(FrameError):
        pipe.generate([good[:-1]], ["What?"])


@pytest.mark.parametrize(("question", "code"), [("", 2005), ("  ", 2005), ("\udfff", 2009), ("why " * 600, 2006)])
def test_questions_that_cannot_be_asked(pipe: Pipeline, question: str, code: int) -> None:
    frames = pipe.compress(["one", "two"])
    found = pipe.answers(frames, ["What?", question])
    assert isinstance(found[0], Answer)
    assert isinstance(found[1], RowError)
    assert found[1].code == code
    assert found[1].where.startswith("prompt 1")


def test_numbers_of_contexts_and_prompts_must_agree(pipe: Pipeline) -> None:
    with pytest.raises(InputError) as caught:
        pipe.generate(pipe.compress(["one"]), ["a", "b"])
    assert caught.value.code == 2111


def test_3001_spoils_one_row_only(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = pipe.engine.encode

    def poisoned(ids: Any, lengths: Any, latents: int) -> Any:
        if (ids == ord("!")).any():
            raise LatentError(3001, "the model produced NaN or infinity", where="latents")
        return encode(ids, lengths, latents)

    monkeypatch.setattr(pipe.engine, "encode", poisoned)
    found = pipe.compress_rows(["one", "bad!", "two"])
    assert [getattr(f, "code", 0) for f in found] == [0, 3001, 0]

    prefill = pipe.engine.prefill

    def poisoned_prefill(buffers: Any, embeds: Any, lengths: Any) -> None:
        if (embeds > 5).any():
            raise LatentError(3001, "the model produced NaN or infinity", where="logits")
        prefill(buffers, embeds, lengths)

    monkeypatch.setattr(pipe.engine, "prefill", poisoned_prefill)
    huge = message.from_latents([np.full((2, 8), 1e4, np.float32)], Codec.F16, pipe.bundle.manifest.encoder.model_id)
    answers = pipe.answers(["one", huge, "two"], ["What?"] * 3)
    assert [getattr(f, "code", 0) for f in answers] == [0, 3001, 0]


def test_compress_needs_the_encoder_only(toy_bundle: Path) -> None:
    with Pipeline.open(toy_bundle, parts=COMPRESS_PARTS) as half:
        assert half.compress(["text"])


def test_errors_survive_a_process_border() -> None:
    import pickle

    error = RowError(2006, "text too long", where="a:1", expected="64", fix="chunk")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, LatentWireError)
    assert str(again) == str(error)
