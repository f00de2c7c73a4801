"""What a compiled or fixed bundle cannot take is cut into what it can, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentwire.core.errors import RowError
from latentwire.engines.base import F32, I64
from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine
from latentwire.runtime.cli import app
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.surprise import surprise

TEXTS = [f"The bridge number {i} was opened in {1900 + i}." for i in range(9)]
QUESTIONS = ["When?"] * len(TEXTS)


class Limited(ToyEngine):
    """A toy engine that notes what is allocated."""

    def __init__(self, bundle: Path, capacity: int = 0) -> None:
        found = read_bundle(bundle)
        super().__init__(replace(found, manifest=replace(found.manifest, capacity=capacity)))
        self.allocated: list[tuple[int, int]] = []

    def alloc(self, batch: int, capacity: int) -> Buffers:
        buffers = super().alloc(batch, capacity)
        self.allocated.append((batch, buffers.capacity))
        return buffers


@pytest.fixture
def want(toy_bundle: Path) -> list[str]:
    with Pipeline.open(toy_bundle) as pipe:
        return pipe.generate(pipe.compress(TEXTS), QUESTIONS)


def test_batches_stay_within_the_plan(toy_bundle: Path, want: list[str]) -> None:
    engine = Limited(toy_bundle)
    engine.max_batch = 4
    pipe = Pipeline(engine)
    assert pipe.generate(pipe.compress(TEXTS), QUESTIONS, GenerateOptions(batch_size=16)) == want
    assert [batch for batch, _ in engine.allocated] == [4, 1]


@pytest.mark.parametrize("fill", [1, 100, 10_000])
def test_calls_are_as_long_as_fills_the_engine(
    toy_bundle: Path, want: list[str], monkeypatch: pytest.MonkeyPatch, fill: int
) -> None:
    engine, read, encoded = Limited(toy_bundle), [], []
    engine.fill = fill
    prefill, encode = engine.prefill, engine.encode

    def reading(buffers: Buffers, embeds: F32, lengths: I64) -> None:
        assert embeds.shape[1] == lengths.max()  # no position that all of these rows pad
        read.append(embeds.shape[:2])
        prefill(buffers, embeds, lengths)

    def encoding(ids: I64, lengths: I64, latents: int) -> F32:
        encoded.append(ids.shape)
        return encode(ids, lengths, latents)

    monkeypatch.setattr(engine, "prefill", reading)
    monkeypatch.setattr(engine, "encode", encoding)
    pipe = Pipeline(engine)
    assert pipe.generate(pipe.compress(TEXTS), QUESTIONS) == want
    for shapes in (read, encoded):
        assert sum(rows for rows, _ in shapes) == len(TEXTS)
        assert all(rows == 1 or rows * longest <= fill for rows, longest in shapes)
    assert (len(read), len(encoded)) == {1: (9, 9), 10_000: (1, 1)}.get(fill, (len(read), len(encoded)))


def test_prompts_longer_than_the_plan_are_refused_one_by_one(toy_bundle: Path) -> None:
    engine = Limited(toy_bundle)
    engine.max_prompt = 40
    pipe = Pipeline(engine)
    frames = pipe.compress(TEXTS[:2])
    found = pipe.answers(frames, ["When?", "When was it opened, and by whom?"])
    assert not isinstance(found[0], RowError)
    assert isinstance(found[1], RowError)
    assert found[1].code == 2006
    assert "longer than the compiled plan takes" in str(found[1])


def test_a_fixed_cache_is_allocated_once(toy_bundle: Path, want: list[str]) -> None:
    """Whatever the batches need, they get the same buffers; more rows than memory allows are not tried."""
    engine = Limited(toy_bundle, capacity=96)
    pipe = Pipeline(engine)
    frames = pipe.compress(TEXTS)
    assert pipe.generate(frames, QUESTIONS) == want
    assert pipe.generate(frames, QUESTIONS) == want
    assert engine.allocated == [(9, 96)]
    row = 2 * 2 * 1 * 8 * 4 * 96  # layers, heads, head size, float32, slots
    assert pipe.generate(frames, QUESTIONS, GenerateOptions(kv_bytes=3 * row)) == want
    assert engine.allocated == [(9, 96), (3, 96)]


def test_answers_are_scored_in_a_fixed_cache(toy_bundle: Path) -> None:
    engine = Limited(toy_bundle, capacity=96)
    pipe = Pipeline(engine)
    (frame,) = pipe.compress(TEXTS[:1])
    request = pipe.request(frame, "When?", GenerateOptions(), "question")
    (found,) = surprise(engine, [request], [[5, 6, 7]])
    assert engine.allocated == [(1, 96)]
    with Pipeline.open(toy_bundle) as free:
        (want,) = surprise(free.engine, [request], [[5, 6, 7]])
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_2006_answers_must_fit_a_fixed_cache(toy_bundle: Path) -> None:
    pipe = Pipeline(Limited(toy_bundle, capacity=32))
    with pytest.raises(RowError, match="expected at most 32 positions with the answer"):
        pipe.generate(pipe.compress(TEXTS[:1]), ["When was the bridge opened?"])


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--device", "cuda"], 6, "LW-5001 this device cannot run the bundle; --device cuda"),
        (["--device", "tpu"], 6, "LW-5001 no such device; --device tpu"),
        (["--engine", "ort"], 6, "LW-5001 this bundle and this backend do not go together; --engine ort"),
        (["--engine", "vllm"], 2, "vllm"),
        (["--engine", "toy", "--device", "cpu"], 0, ""),
    ],
)
def test_the_command_line_passes_it_on(
    options: list[str], status: int, said: str, toy_bundle: Path, tmp_path: Path
) -> None:
    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"custom_id": str(i), "text": t}) + "\n" for i, t in enumerate(TEXTS[:2])))
    compress = ["compress", str(docs), "-o", str(tmp_path / "out"), "-b", str(toy_bundle), *options]
    result = CliRunner().invoke(app, compress)
    assert (result.exit_code, said in result.stderr) == (status, True)
    if status == 0:
        ask = ["generate", str(tmp_path / "out"), "--question", "When?", "-b", str(toy_bundle), *options]
        assert CliRunner().invoke(app, ask).exit_code == 0
