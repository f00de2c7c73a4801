"""Batches that do not fit in memory run in halves: same answers, said once, learnt for the next batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire.core.errors import EnvironmentFault
from latentwire.engines.base import F32, I64
from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine
from latentwire.runtime.memory import Room
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline

TEXTS = [f"The bridge number {i} was opened in {1900 + i}." for i in range(11)]
QUESTIONS = ["When was it opened?"] * len(TEXTS)


class SmallEngine(ToyEngine):
    """A toy engine on a machine with room for a few rows; ``where`` is what needs the memory."""

    def __init__(self, bundle: Path, rows: int, where: str) -> None:
        super().__init__(read_bundle(bundle))
        self.rows, self.where = rows, where
        self.tried: list[int] = []

    def _need(self, where: str, rows: int) -> None:
        if where == self.where:
            self.tried.append(rows)
            if rows > self.rows:
                raise EnvironmentFault(5003, "not enough memory", where=where, fix="use a smaller batch")

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        self._need("encode", len(lengths))
        return super().encode(input_ids, lengths, latents)

    def alloc(self, batch: int, capacity: int) -> Buffers:
        self._need("alloc", batch)
        return super().alloc(batch, capacity)

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        self._need("prefill", len(lengths))
        super().prefill(buffers, inputs_embeds, lengths)

    def decode(self, buffers: Buffers) -> None:
        self._need("decode", buffers.batch)
        super().decode(buffers)


@pytest.mark.parametrize("where", ["alloc", "prefill", "decode"])
def test_answers_are_the_same(where: str, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Pipeline.open(toy_bundle) as pipe:
        frames = pipe.compress(TEXTS)
        want = pipe.generate(frames, QUESTIONS)
    engine = SmallEngine(toy_bundle, 2, where)
    pipe = Pipeline(engine)
    assert pipe.generate(frames, QUESTIONS, GenerateOptions(batch_size=8)) == want
    said = [line for line in capsys.readouterr().err.splitlines() if "not enough memory" in line]
    assert said == [f"not enough memory for {n} rows at once; going on with {n // 2}" for n in (8, 4)]
    too_many = [n for n in engine.tried if n > 2]
    assert too_many == [8, 4]
    assert pipe.generate(frames, QUESTIONS, GenerateOptions(batch_size=8)) == want  # and nothing is tried again
    assert [n for n in engine.tried if n > 2] == [8, 4]


def test_compression_halves_too(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = SmallEngine(toy_bundle, 3, "encode")
    pipe = Pipeline(engine)
    with Pipeline.open(toy_bundle) as plain:
        assert pipe.compress(TEXTS, CompressOptions(batch_size=8)) == plain.compress(TEXTS)
    assert pipe.compress(TEXTS[:5])
    assert [n for n in engine.tried if n > 3] == [8, 4]
    assert capsys.readouterr().err.count("not enough memory") == 2


def test_one_row_that_does_not_fit_is_an_error(toy_bundle: Path) -> None:
    pipe = Pipeline(SmallEngine(toy_bundle, 0, "alloc"))
    with pytest.raises(EnvironmentFault) as caught:
        pipe.generate(pipe.compress(TEXTS[:4]), QUESTIONS[:4])
    assert caught.value.code == 5003


def test_other_faults_pass() -> None:
    def missing(part: object) -> list[int]:
        raise EnvironmentFault(5001, "no such device")

    with pytest.raises(EnvironmentFault, match="LW-5001"):
        Room().run([1, 2], missing)


def test_done_counts_every_request(toy_bundle: Path) -> None:
    pipe = Pipeline(SmallEngine(toy_bundle, 2, "alloc"))
    heard: list[int] = []
    pipe.answers(pipe.compress(TEXTS), QUESTIONS, GenerateOptions(batch_size=8), heard.append)
    assert sum(heard) == len(TEXTS)
