"""The server on the shipped checkpoint and the embedded model: the same answers as the pipeline gives."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline

from .conftest import HTTP, Running

TEXTS = {
    "The bridge was opened in 1932 and carries eight lanes of traffic.": "When was the bridge opened?",
    "Marie Curie was born in Warsaw and won two Nobel Prizes.": "Where was Marie Curie born?",
    "Water boils at 100 degrees Celsius at sea level.": "At how many degrees does water boil?",
    "The committee met on Tuesday in Lisbon to choose a new chair.": "Where did the committee meet?",
}


@pytest.fixture(scope="module")
def real(smollm2_bundle: Path) -> Iterator[Running]:
    running = Running(smollm2_bundle, "--threads", "1", "--batch-size", "4", "--name", "small")
    yield running
    assert running.stop() == 0


def test_answers_are_the_pipelines_whatever_runs_beside(real: Running, smollm2_bundle: Path) -> None:
    with Pipeline.open(smollm2_bundle, threads=1, verify="size") as pipe:
        frames = pipe.compress(list(TEXTS))
        wanted = [pipe.generate([f], [q], GenerateOptions(8))[0] for f, q in zip(frames, TEXTS.values(), strict=True)]
    made = HTTP.post(f"{real.url}/compress", json={"input": list(TEXTS)}).json()["data"]
    assert [base64.b64decode(one["frame"]) for one in made] == frames

    def ask(number: int) -> str:
        url = f"data:application/vnd.latentwire.frame;base64,{made[number]['frame']}"
        content = [{"type": "file", "file": {"file_data": url}}, {"type": "text", "text": list(TEXTS.values())[number]}]
        messages: list[Any] = [{"role": "user", "content": content}]
        chunks = real.client().chat.completions.create(model="small", messages=messages, max_tokens=8, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [0, 1, 2, 3] * 2)) == wanted * 2
