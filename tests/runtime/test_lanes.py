"""Lanes: the same answers from several threads, each with its share of the rows; one failure ends them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Barrier, Event, current_thread

import numpy as np
import pytest

from latentwire.benchmarks.counted import counted
from latentwire.core.errors import EnvironmentFault, LatentError
from latentwire.engines.base import F32, I64, Engine
from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine
from latentwire.runtime.answer import Answer
from latentwire.runtime.generate import LANE_ROWS
from latentwire.runtime.lanes import share_out
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline

TEXTS = [f"The bridge number {i} was opened in {1900 + 7 * i} by {'so ' * (i % 5)}people." for i in range(23)]
QUESTIONS = [f"When was number {i} opened?" for i in range(23)]
PAIR = 2


class Laned(ToyEngine):
    """A toy engine with two lanes, which note what they are asked; ``meet``: both must be at work at once."""

    def __init__(self, bundle: Path, meet: bool = False) -> None:
        super().__init__(read_bundle(bundle))
        self.asked: dict[str, list[int]] = {"alloc": [], "encode": [], "decode": []}
        self.threads: set[str] = set()
        self.meeting = Barrier(PAIR, timeout=20) if meet else None
        self.parts: list[Laned] = []

    def lanes(self) -> Sequence[Engine]:
        if not self.parts:
            self.parts = [type(self)(self.bundle.path) for _ in range(PAIR)]
            for part in self.parts:
                part.lanes, part.meeting = tuple, self.meeting  # type: ignore[method-assign]
        return self.parts

    def note(self, what: str, rows: int) -> None:
        self.asked[what].append(rows)
        self.threads.add(current_thread().name)
        if self.meeting and len(self.asked[what]) == 1:
            self.meeting.wait()

    def alloc(self, batch: int, capacity: int) -> Buffers:
        self.note("alloc", batch)
        return super().alloc(batch, capacity)

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        self.note("encode", len(lengths))
        return super().encode(input_ids, lengths, latents)

    def decode(self, buffers: Buffers) -> None:
        self.note("decode", buffers.batch)
        super().decode(buffers)


@pytest.fixture
def frames(toy_bundle: Path) -> list[bytes]:
    with Pipeline.open(toy_bundle) as pipe:
        return pipe.compress(TEXTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_one_batch(toy_bundle: Path, frames: list[bytes], temperature: float) -> None:
    options = GenerateOptions(batch_size=8, temperature=temperature, seed=3, stop=())
    with Pipeline.open(toy_bundle) as pipe:
        want = pipe.answers(frames, QUESTIONS, options)
    engine = Laned(toy_bundle, meet=True)
    heard: list[int] = []
    found = Pipeline(engine).answers(frames, QUESTIONS, options, heard.append)
    assert found == want
    assert sum(heard) == len(frames)
    assert engine.asked["decode"] == []
    assert [part.asked["alloc"][0] for part in engine.parts] == [4, 4]  # half of eight each
    assert sorted(name[:15] for part in engine.parts for name in part.threads) == ["latentwire-lane"] * 2


def test_few_requests_and_small_batches_stay_together(toy_bundle: Path, frames: list[bytes]) -> None:
    few = PAIR * LANE_ROWS - 1
    for count, rows in ((few, 16), (len(frames), few)):
        engine = Laned(toy_bundle)
        assert (
            len(Pipeline(engine).answers(frames[:count], QUESTIONS[:count], GenerateOptions(batch_size=rows))) == count
        )
        assert engine.asked["decode"]
        assert engine.lanes()[0].asked["decode"] == []  # type: ignore[attr-defined]


def test_texts_are_shared_out(toy_bundle: Path, frames: list[bytes]) -> None:
    engine = Laned(toy_bundle, meet=True)
    engine.fill = 120
    assert Pipeline(engine).compress(TEXTS) == frames
    assert engine.asked["encode"] == []
    assert sum(sum(part.asked["encode"]) for part in engine.parts) == len(TEXTS)
    together = Laned(toy_bundle)
    assert Pipeline(together).compress(TEXTS, CompressOptions(batch_size=8)) == frames
    assert together.asked["encode"] == [8, 8, 7]  # too few batches to share out evenly


class Poisoned(Laned):
    """Rows of one lane have no finite logits from the second token on; the other's are sound."""

    def decode(self, buffers: Buffers) -> None:
        super().decode(buffers)
        if any(buffers.lengths > 0) and self.name == "poisoned":
            raise LatentError(3001, "logits are not finite", where="engine toy")


def test_an_error_of_one_lane_ends_its_requests_only(toy_bundle: Path, frames: list[bytes]) -> None:
    engine = Poisoned(toy_bundle)
    engine.lanes()[1].name = "poisoned"
    found = Pipeline(engine).answers(frames, QUESTIONS, GenerateOptions(batch_size=8, stop=()))
    ended = [isinstance(event, Answer) for event in found]
    assert len(found) == len(frames)
    assert ended.count(True) == 12
    assert all(isinstance(e, LatentError) for e in found if not isinstance(e, Answer))


class Full(Laned):
    """No memory at all in one lane."""

    def alloc(self, batch: int, capacity: int) -> Buffers:
        if self.name == "full":
            raise EnvironmentFault(5003, "not enough memory", where="alloc")
        return super().alloc(batch, capacity)


def test_no_memory_for_a_single_row_is_told(toy_bundle: Path, frames: list[bytes]) -> None:
    engine = Full(toy_bundle)
    engine.lanes()[0].name = "full"
    with pytest.raises(EnvironmentFault, match="LW-5003 not enough memory"):
        Pipeline(engine).answers(frames, QUESTIONS, GenerateOptions(batch_size=8))


def test_what_lanes_do_is_counted(toy_bundle: Path, frames: list[bytes]) -> None:
    options = GenerateOptions(batch_size=8, stop=())
    counts = []
    for inner in (Laned(toy_bundle), ToyEngine(read_bundle(toy_bundle))):
        engine, counter = counted(inner)
        pipe = Pipeline(engine)
        pipe.answers(frames, QUESTIONS, options)
        pipe.compress(TEXTS, CompressOptions(batch_size=2))
        counts.append(counter.take())
        assert counter.take() == {}
    for what in ("prefill_real", "encode_real", "encode_padded", "encode_calls"):
        assert counts[0][what] == counts[1][what]


def test_pieces_come_back_in_order_whoever_did_them() -> None:
    lanes, met = ["left", "right"], Barrier(2, timeout=20)

    def work(lane: str, item: int, stop: Event) -> tuple[str, int]:
        if item < PAIR:
            met.wait()
        return lane, item * item

    found = share_out(lanes, range(9), work)
    assert [value for _, value in found] == [i * i for i in range(9)]
    assert {lane for lane, _ in found[:2]} == set(lanes)
    assert share_out(lanes, [], work) == []
    here = share_out(["alone"], range(2), lambda lane, item, stop: current_thread())
    assert here == [current_thread()] * 2


@pytest.mark.parametrize("at", [0, 1, 5])
def test_the_first_failure_stops_the_rest(at: int) -> None:
    done: list[int] = []

    def work(lane: int, item: int, stop: Event) -> None:
        if item == at:
            raise ValueError(f"item {item}")
        if item > at:
            assert stop.wait(20)
        done.append(item)

    with pytest.raises(ValueError, match=f"item {at}"):
        share_out([0, 1], range(50), work)
    assert len(done) <= at + 1


def test_a_failure_of_a_later_lane_stops_the_earlier_one() -> None:
    met = Barrier(2, timeout=20)

    def work(lane: int, item: int, stop: Event) -> None:
        met.wait()  # each has one
        if lane == 1:
            raise ValueError("lane 1")
        assert stop.wait(20)

    with pytest.raises(ValueError, match="lane 1"):
        share_out([0, 1], range(50), work)


def test_lanes_share_the_memory_for_rows(toy_bundle: Path, frames: list[bytes]) -> None:
    engine = Laned(toy_bundle)
    llm = engine.bundle.manifest.llm
    position = 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * 4
    options = GenerateOptions(batch_size=16, kv_bytes=8 * 96 * position, stop=())
    Pipeline(engine).answers(frames, QUESTIONS, options)
    assert {max(part.asked["alloc"]) for part in engine.parts} <= {3, 4}  # of eight that the batch allows


def test_an_interrupt_asks_lanes_to_end(toy_bundle: Path, frames: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    started = Event()
    result: Callable[..., object] = Future.result

    def interrupted(self: Future[object], timeout: float | None = None) -> object:
        assert started.wait(20)
        raise KeyboardInterrupt

    class Endless(Laned):
        def decode(self, buffers: Buffers) -> None:
            super().decode(buffers)
            buffers.next_token[:] = 97
            started.set()

    engine = Endless(toy_bundle)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(engine).answers(frames, QUESTIONS, GenerateOptions(batch_size=8, stop=(), max_new_tokens=200))
    monkeypatch.setattr(Future, "result", result)
    steps = [len(part.asked["decode"]) for part in engine.parts]
    assert max(steps) < 3 * 199  # of 12 requests, four at a time


def test_latents_do_not_depend_on_the_lane(toy_bundle: Path) -> None:
    engine = Laned(toy_bundle)
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    found = [lane.encode(ids, np.array([6, 4]), 3) for lane in (engine, *engine.lanes())]
    for z in found[1:]:
        np.testing.assert_array_equal(z, found[0])
