"""The loop on the toy engine: rows refilled, failed and read again, and every answer as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentwire.core.errors import EnvironmentFault, LatentError, LatentWireError
from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine, write_toy_bundle
from latentwire.runtime.answer import Answer
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.request import Request
from latentwire.runtime.scheduler.loop import Event, Loop, limits_of

from ..conftest import TEXTS

ASKED = st.lists(
    st.tuples(st.integers(0, 3), st.integers(3, 40), st.integers(1, 12), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=10,
)


def made(pipe: Pipeline, which: int, cut: int, tokens: int, heat: float) -> tuple[Request, GenerateOptions]:
    options = GenerateOptions(max_new_tokens=tokens, stop=("e",), temperature=heat, seed=cut, top_p=0.9)
    text = TEXTS[which][:cut]
    context = pipe.compress([text])[0] if which % 2 else text
    return pipe.request(context, "What?", options, "prompt"), options


def answered(
    pipe: Pipeline,
    asked: list[tuple[Request, GenerateOptions]],
    during: Callable[[Loop], None] = lambda loop: None,
    **limits: Any,
) -> list[list[Event]]:
    """Events of each request; ``during`` runs before every step."""
    most = GenerateOptions(batch_size=3)
    loop = Loop(pipe.engine, pipe.tokenizer, limits_of(pipe.engine, most, **limits))
    heard: list[list[Event]] = [[] for _ in asked]
    for i, (request, options) in enumerate(asked):
        assert loop.add(request, options, heard[i].append) is not None
    during(loop)
    while loop.step():
        during(loop)
    return heard


def whole(events: list[Event]) -> Answer:
    """The answer; the pieces before it are its text."""
    answer = events[-1]
    assert isinstance(answer, Answer), answer
    assert "".join(e for e in events[:-1] if isinstance(e, str)) == answer.text
    return answer


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ASKED, st.booleans(), st.integers(1, 3), st.booleans())
def test_answers_depend_on_nothing_but_the_request(
    pipe: Pipeline, asked: list[tuple[int, int, int, float]], online: bool, refill_at: int, refill: bool
) -> None:
    requests = [made(pipe, *a) for a in asked]
    together = answered(pipe, requests, online=online, refill_at=refill_at, refill=refill, look=2)
    alone = [answered(pipe, [r])[0] for r in requests]
    assert [whole(e) for e in together] == [whole(e) for e in alone]


def test_a_seed_is_a_stream_of_its_own(pipe: Pipeline) -> None:
    hot = GenerateOptions(max_new_tokens=12, stop=(), temperature=2.0, seed=7)
    assert pipe.generate_text([TEXTS[0]], ["What?"], hot) == pipe.generate_text([TEXTS[0]], ["What?"], hot)
    other = GenerateOptions(max_new_tokens=12, stop=(), temperature=2.0, seed=8)
    assert pipe.generate_text([TEXTS[0]], ["What?"], hot) != pipe.generate_text([TEXTS[0]], ["What?"], other)
    many = pipe.generate_text([TEXTS[0]] * 4, ["What?"] * 4, hot)
    assert len(set(many)) > 1  # draws of one call differ, or asking several times would be of no use


def test_rows_are_refilled(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    prefill = pipe.engine.prefill

    def counted(buffers: Buffers, embeds: Any, lengths: Any) -> None:
        calls.append(len(lengths))
        prefill(buffers, embeds, lengths)

    monkeypatch.setattr(pipe.engine, "prefill", counted)
    asked = [made(pipe, 0, 30, 2 if i < 2 else 6, 0.0) for i in range(6)]
    for row in answered(pipe, [(r, GenerateOptions(o.max_new_tokens, ())) for r, o in asked]):
        whole(row)
    assert calls == [3, 2, 1]


class FailingEngine(ToyEngine):
    """Fails once a rule says so: NaN in the rows of marked prompts, or no memory."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(read_bundle(bundle))
        self.nan_at: set[int] = set()
        self.rows = 100

    def decode(self, buffers: Buffers) -> None:
        if buffers.batch > self.rows:
            raise EnvironmentFault(5003, "not enough memory", where="decode")
        super().decode(buffers)
        bad = np.isin(buffers.lengths, list(self.nan_at))
        if bad.any():
            buffers.logits[bad] = np.nan
            buffers.cache["past_v.0"][bad] = np.nan  # and what follows in these rows would be too
            raise LatentError(3001, "the model produced NaN or infinity", where="logits")


@pytest.fixture
def failing(toy_bundle: Path) -> Pipeline:
    return Pipeline(FailingEngine(toy_bundle))


def engine_of(pipe: Pipeline) -> FailingEngine:
    assert isinstance(pipe.engine, FailingEngine)
    return pipe.engine


@pytest.mark.parametrize("heat", [0.0, 1.5])
def test_3001_one_row_ends_and_the_others_finish(failing: Pipeline, heat: float) -> None:
    asked = [
        (made(failing, 0, 20 + i, 12, heat)[0], GenerateOptions(12, (), temperature=heat, seed=i)) for i in range(5)
    ]
    want = [whole(events) for events in answered(failing, asked)]
    longest = max(a.prompt_positions for a in want)
    engine_of(failing).nan_at = {longest + 11}  # only the longest gets so far: in its last step but one
    found = answered(failing, asked)
    assert isinstance(found[4][-1], LatentError)
    assert found[4][-1].code == 3001
    assert [whole(events) for events in found[:4]] == want[:4]


def test_5003_fewer_rows_and_nothing_told_twice(failing: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [(made(failing, 0, 20 + i, 12, 0.0)[0], GenerateOptions(12, ())) for i in range(5)]
    want = [whole(events) for events in answered(failing, asked)]
    steps = 0

    def shrink(loop: Loop) -> None:
        nonlocal steps
        steps += 1
        engine_of(failing).rows = 1 if steps > 6 else 100

    assert [whole(events) for events in answered(failing, asked, shrink)] == want
    assert capsys.readouterr().err.count("not enough memory for 3 rows at once; going on with 1") == 1


def test_5003_a_pool_that_is_larger_than_what_asks(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Online a pool has all rows, whoever is there: one request must not end because sixteen rows do not fit."""
    alloc = pipe.engine.alloc

    def small(batch: int, capacity: int) -> Buffers:
        if batch * capacity > 600:
            raise EnvironmentFault(5003, "not enough memory", where="alloc")
        return alloc(batch, capacity)

    asked = [made(pipe, 0, 20, 4, 0.0)]
    (want,) = answered(pipe, asked)
    monkeypatch.setattr(pipe.engine, "alloc", small)
    loop = Loop(pipe.engine, pipe.tokenizer, limits_of(pipe.engine, GenerateOptions(batch_size=16), online=True))
    heard: list[list[Event]] = [[], [], []]
    huge = Request(asked[0][0].latents, tuple(range(97, 122)) * 30, asked[0][0].question)
    for request, events in zip((asked[0][0], huge, asked[0][0]), heard, strict=True):
        loop.add(request, GenerateOptions(4, ("e",)), events.append)
        while loop.step():
            pass
    assert whole(heard[0]) == whole(heard[2]) == whole(want)
    assert isinstance(heard[1][-1], EnvironmentFault)
    assert loop.scheduler.rows > 1  # a request that is too large for one row does not make the next ones slow
    assert "not enough memory for 16 rows at once; going on with 8" in capsys.readouterr().err


def test_5003_not_even_one_row(failing: Pipeline) -> None:
    engine_of(failing).rows = 0
    asked = [(made(failing, 0, 20, 4, 0.0)[0], GenerateOptions(4, ())) for _ in range(3)]
    for events in answered(failing, asked):
        assert isinstance(events[-1], EnvironmentFault)
        assert events[-1].code == 5003
    with pytest.raises(EnvironmentFault):
        failing.generate_text([TEXTS[0]], ["What?"])


def test_a_fault_before_the_decoder_is_searched_for(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits do not tell which row it was: each is read alone, and only the one at fault ends."""
    adapt = pipe.engine.adapt

    def poisoned(latents: Any) -> Any:
        if (latents > 50).any():
            raise LatentError(3001, "the model produced NaN or infinity", where="adapter rows")
        return adapt(latents)

    asked = [made(pipe, 1, 30 + i, 5, 0.0) for i in range(4)]
    want = [whole(events) for events in answered(pipe, asked)]
    asked[2] = (Request(asked[2][0].latents + 100, (), asked[2][0].question), asked[2][1])
    monkeypatch.setattr(pipe.engine, "adapt", poisoned)
    found = answered(pipe, asked)
    assert isinstance(found[2][-1], LatentError)
    assert [whole(found[i]) for i in (0, 1, 3)] == [want[i] for i in (0, 1, 3)]


def test_cancelled_requests_are_not_computed(pipe: Pipeline) -> None:
    asked = [(made(pipe, 0, 30, 8, 0.0)[0], GenerateOptions(8, ())) for _ in range(4)]
    loop = Loop(pipe.engine, pipe.tokenizer, limits_of(pipe.engine, GenerateOptions(batch_size=2)))
    heard: list[list[Event]] = [[] for _ in asked]
    keys = [loop.add(r, o, heard[i].append) for i, (r, o) in enumerate(asked)]
    loop.step()
    for key in (keys[0], keys[3]):
        assert key is not None
        loop.cancel(key)
    while loop.step():
        pass
    assert not any(isinstance(e, (Answer, LatentWireError)) for i in (0, 3) for e in heard[i])
    assert whole(heard[1]) == whole(heard[2])


@pytest.mark.parametrize("feature", ["deep_prefix", "coprocessor"])
def test_latents_in_the_cache_are_read_a_batch_at_a_time(tmp_path: Path, feature: str) -> None:
    with Pipeline(ToyEngine(write_toy_bundle(tmp_path / "b", features={feature: {}}))) as pipe:
        assert not limits_of(pipe.engine, GenerateOptions()).refill
        asked = [made(pipe, i % 4, 30 + i, 3 + i, 0.0) for i in range(7)]
        together = answered(pipe, asked)
        assert [whole(e) for e in together] == [whole(answered(pipe, [a])[0]) for a in asked]


def test_a_stream_that_is_closed_stops_computing(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    decode = pipe.engine.decode

    def counted(buffers: Buffers) -> None:
        calls.append(1)
        decode(buffers)

    monkeypatch.setattr(pipe.engine, "decode", counted)
    stream: Any = pipe.stream(TEXTS[0], "What?", GenerateOptions(max_new_tokens=500, stop=()))
    assert next(stream)
    stream.close()
    assert len(calls) < 10
    assert pipe.generate_text([TEXTS[0]], ["What?"])
