"""OpenAI's own client against a real server process: what it sends is understood, what it gets it understands."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from latentwire.runtime.message import unpack
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline

from .conftest import HTTP, Running

TEXT = "The bridge was opened in 1932 and carries eight lanes of traffic."
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def pipe(served_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(served_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def frame(pipe: Pipeline) -> bytes:
    return pipe.compress([TEXT])[0]


def url_of(frame: bytes) -> str:
    return "data:application/vnd.latentwire.frame;base64," + base64.b64encode(frame).decode()


def about(frame: bytes, question: str = QUESTION) -> list[Any]:
    parts = [{"type": "file", "file": {"file_data": url_of(frame)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def test_models(server: Running) -> None:
    listed = server.client().models.list()
    assert [model.id for model in listed] == ["toy"]
    assert server.client().models.retrieve("toy").id == "toy"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-9")


def test_a_frame_in_a_chat_answers_as_the_pipeline_does(server: Running, pipe: Pipeline, frame: bytes) -> None:
    (wanted,) = pipe.generate([frame], [QUESTION], GenerateOptions(24))
    answer = server.client().chat.completions.create(model="toy", messages=about(frame), max_tokens=24)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_frames_in_completions(server: Running, pipe: Pipeline, frame: bytes) -> None:
    other = pipe.compress(["Water boils at 100 degrees."])[0]
    questions = [QUESTION, "At how many degrees?"]
    wanted = pipe.generate([frame, other], questions, GenerateOptions(24))
    body = {"frame": [base64.b64encode(f).decode() for f in (frame, other)]}
    found = server.client().completions.create(model="toy", prompt=questions, max_tokens=24, extra_body=body)
    assert [choice.text for choice in found.choices] == wanted
    assert [choice.index for choice in found.choices] == [0, 1]


def test_a_text_as_context_is_the_reference_path(server: Running, pipe: Pipeline) -> None:
    (wanted,) = pipe.generate_text([TEXT], [QUESTION], GenerateOptions(24))
    client = server.client()
    found = client.completions.create(model="toy", prompt=QUESTION, max_tokens=24, extra_body={"context": TEXT})
    assert found.choices[0].text == wanted
    chat = client.chat.completions.create(
        model="toy",
        messages=[{"role": "system", "content": TEXT}, {"role": "user", "content": QUESTION}],
        max_tokens=24,
    )
    assert chat.choices[0].message.content == wanted


def test_earlier_turns_stand_before_the_question(server: Running, pipe: Pipeline, frame: bytes) -> None:
    turns: list[Any] = [
        *about(frame, "Who built it?"),
        {"role": "assistant", "content": "Nobody knows."},
        {"role": "user", "content": QUESTION},
    ]
    asked = f"Who built it?\nAnswer: Nobody knows.\nQuestion: {QUESTION}"
    (wanted,) = pipe.generate([frame], [asked], GenerateOptions(24))
    found = server.client().chat.completions.create(model="toy", messages=turns, max_tokens=24)
    assert found.choices[0].message.content == wanted


def test_a_stream_joined_is_the_whole_answer(server: Running, frame: bytes) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="toy", messages=about(frame), max_tokens=40, stop=[])
    stream = client.chat.completions.create(
        model="toy", messages=about(frame), max_tokens=40, stop=[], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_stream_of_completions(server: Running) -> None:
    client = server.client()
    whole = client.completions.create(model="toy", prompt=["One", "Two"], n=2, max_tokens=12)
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="toy", prompt=["One", "Two"], n=2, max_tokens=12, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 2 * (1 + 2 + 3)  # <bos>, two task rows, three bytes; choices share a prompt


def test_stop_strings_and_lengths(server: Running, frame: bytes) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="toy", messages=about(frame), max_tokens=40, stop=[])
    text = whole.choices[0].message.content or ""
    end = text[5]
    cut = client.chat.completions.create(model="toy", messages=about(frame), max_tokens=40, stop=end)
    assert cut.choices[0].message.content == text[: text.index(end)].strip()
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="toy", messages=about(frame), max_completion_tokens=3, stop=[])
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_compress_gives_the_pipelines_frames(server: Running, pipe: Pipeline) -> None:
    texts = [TEXT, "Short."]
    found = HTTP.post(f"{server.url}/compress", json={"input": texts, "codec": "f16", "latents": 4}).json()
    frames = [base64.b64decode(one["frame"]) for one in found["data"]]
    assert frames == pipe.compress(texts, CompressOptions("f16", 4))
    assert [one["bytes"] for one in found["data"]] == [len(frame) for frame in frames]
    assert [one["latents"] for one in found["data"]] == [unpack(frame).latents for frame in frames]
    assert [one["text_bytes"] for one in found["data"]] == [len(text) for text in texts]


def test_compress_and_ask_without_any_other_library(server: Running, pipe: Pipeline, frame: bytes) -> None:
    made = HTTP.post(f"{server.url}/compress", json={"input": TEXT}).json()["data"][0]
    assert base64.b64decode(made["frame"]) == frame
    body = {"model": "toy", "prompt": QUESTION, "frame": made["frame"], "max_tokens": 24}
    found = HTTP.post(f"{server.url}/completions", json=body).json()
    assert [found["choices"][0]["text"]] == pipe.generate([frame], [QUESTION], GenerateOptions(24))


def test_errors_are_the_clients_own(server: Running, frame: bytes) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="toy", messages=about(frame[:-1]))
    assert refused.value.code == "LW-1102"
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as logprobs:
        client.chat.completions.create(model="toy", messages=about(frame), logprobs=True)
    assert logprobs.value.code == "LW-2131"
    assert logprobs.value.param == "logprobs"
    with pytest.raises(openai.NotFoundError) as model:
        client.completions.create(model="other", prompt="x")
    assert model.value.code == "LW-2134"


def test_metrics_count_what_was_done(server: Running) -> None:
    tokens, texts = server.metric("new_tokens_total"), server.metric("compressed_texts_total")
    server.client().completions.create(model="toy", prompt="One", max_tokens=5)
    HTTP.post(f"{server.url}/compress", json={"input": [TEXT, TEXT]})
    assert server.metric("new_tokens_total") == tokens + 5
    assert server.metric("compressed_texts_total") == texts + 2
    assert server.metric("requests_held") == 0


def test_draws_depend_on_the_seed_alone(server: Running, frame: bytes) -> None:
    def ask(**more: Any) -> list[str]:
        found = server.client().completions.create(
            model="toy", prompt=QUESTION, max_tokens=20, stop=[], temperature=1.5, **more
        )
        return [choice.text for choice in found.choices]

    alone, beside = ask(seed=7), ask(seed=7, n=3)
    assert beside[0] == alone[0]
    assert len(set(beside)) == 3
    assert ask(seed=8)[0] == beside[1]
    assert ask(seed=7, top_p=1e-6)[0] != alone[0]
    assert ask()[0] != ask()[0]
