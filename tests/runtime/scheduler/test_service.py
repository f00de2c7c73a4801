"""The service: many threads, one engine; what waits is bounded, and who goes away costs nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentwire.core.errors import EnvironmentFault, LatentError, LatentWireError, RowError
from latentwire.engines.base import F32, I64
from latentwire.engines.buffers import Buffers
from latentwire.engines.bundle import read_bundle
from latentwire.engines.toy import ToyEngine
from latentwire.runtime.answer import Answer
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.request import Request
from latentwire.runtime.scheduler.service import Service

from ..conftest import TEXTS

LONG = GenerateOptions(max_new_tokens=60, stop=())


class GatedEngine(ToyEngine):
    """A toy engine whose steps wait for the test."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(read_bundle(bundle))
        self.open = threading.Event()
        self.began = threading.Event()

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        self.began.set()
        assert self.open.wait(30)
        super().prefill(buffers, inputs_embeds, lengths)


@pytest.fixture
def gated(toy_bundle: Path) -> Iterator[Pipeline]:
    engine = GatedEngine(toy_bundle)
    with Pipeline(engine) as pipe:
        yield pipe
        engine.open.set()


def ask(pipe: Pipeline, text: str = TEXTS[0], options: GenerateOptions = LONG) -> Request:
    return pipe.request(text, "What?", options, "prompt")


def engine_of(pipe: Pipeline) -> GatedEngine:
    assert isinstance(pipe.engine, GatedEngine)
    return pipe.engine


def test_many_threads_get_their_own_answers(pipe: Pipeline) -> None:
    options = [GenerateOptions(max_new_tokens=5 + i, stop=("e",) if i % 2 else ()) for i in range(12)]
    requests = [ask(pipe, TEXTS[i % len(TEXTS)][: 20 + i], o) for i, o in enumerate(options)]
    want = [pipe._generator.answers([r], o)[0] for r, o in zip(requests, options, strict=True)]
    with Service(pipe.engine, pipe.tokenizer, rows=3) as service:
        found: list[tuple[str, Answer] | None] = [None] * len(requests)

        def work(i: int) -> None:
            stream = service.submit(requests[i], options[i])
            found[i] = "".join(stream), stream.result()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [f[1] if f else None for f in found] == want
    assert all(f and f[0] == f[1].text for f in found)


def test_5034_what_waits_is_bounded(gated: Pipeline) -> None:
    with Service(gated.engine, gated.tokenizer, rows=1, waiting=2) as service:
        first = service.submit(ask(gated), LONG)
        assert engine_of(gated).began.wait(30)  # it has its row, and no longer waits
        others = [service.submit(ask(gated), LONG) for _ in range(2)]
        with pytest.raises(EnvironmentFault) as caught:
            service.submit(ask(gated), LONG)
        assert caught.value.code == 5034
        assert service.waiting == 2
        others[0].close()  # makes room, though it never ran
        engine_of(gated).open.set()
        assert first.result().text == others[1].result().text
        service.submit(ask(gated), LONG).result()


def test_2006_is_told_at_once(gated: Pipeline) -> None:
    with Service(gated.engine, gated.tokenizer) as service:
        with pytest.raises(RowError) as caught:
            service.submit(ask(gated), GenerateOptions(max_new_tokens=4000))
        assert caught.value.code == 2006


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_reader_who_leaves_frees_the_row(pipe: Pipeline, how: str) -> None:
    endless = GenerateOptions(max_new_tokens=1800, stop=())
    with Service(pipe.engine, pipe.tokenizer, rows=1) as service:
        stream = service.submit(ask(pipe, options=endless), endless)
        assert next(stream)
        if how == "close":
            stream.close()
        del stream
        gc.collect()
        short = GenerateOptions(max_new_tokens=3, stop=())
        assert service.submit(ask(pipe, options=short), short).result().new_tokens == 3
        assert (service.running, service.waiting) == (0, 0)


def test_a_slow_reader_holds_no_row_and_little_memory(pipe: Pipeline) -> None:
    with Service(pipe.engine, pipe.tokenizer, rows=1) as service:
        slow = service.submit(ask(pipe), LONG)
        quick = service.submit(ask(pipe), LONG)
        assert quick.result().new_tokens == 60  # with one row: the slow one's answer is complete and unread
        assert len(slow._events) == 2  # all pieces as one, and the end
        assert "".join(slow) == slow.result().text == quick.result().text


def test_5032_closing_tells_those_who_wait(gated: Pipeline) -> None:
    service = Service(gated.engine, gated.tokenizer, rows=1)
    streams = [service.submit(ask(gated), LONG) for _ in range(3)]
    assert engine_of(gated).began.wait(30)
    threading.Timer(0.2, engine_of(gated).open.set).start()
    service.close()
    for stream in streams:
        with pytest.raises(EnvironmentFault) as caught:
            stream.result()
        assert caught.value.code == 5032
    with pytest.raises(EnvironmentFault) as caught:
        service.submit(ask(gated), LONG)
    assert caught.value.code == 5032


def test_closing_can_finish_first(pipe: Pipeline) -> None:
    service = Service(pipe.engine, pipe.tokenizer, rows=1)
    streams = [service.submit(ask(pipe), LONG) for _ in range(3)]
    service.close(finish=True)
    assert len({stream.result() for stream in streams}) == 1


def test_5037_a_fault_of_our_own_leaves_nobody_waiting(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(buffers: Buffers) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipe.engine, "decode", broken)
    service = Service(pipe.engine, pipe.tokenizer, rows=1)
    streams = [service.submit(ask(pipe), LONG) for _ in range(2)]
    for stream in streams:
        with pytest.raises(EnvironmentFault) as caught:
            stream.result()
        assert caught.value.code == 5037
    with pytest.raises(EnvironmentFault):
        service.submit(ask(pipe), LONG)
    service.close()


def test_a_listener_that_raises_ends_alone(pipe: Pipeline) -> None:
    heard: list[object] = []

    def raising(event: object) -> None:
        heard.append(event)
        raise RuntimeError("gone")

    with Service(pipe.engine, pipe.tokenizer, rows=2) as service:
        service.send(ask(pipe), LONG, raising)
        assert service.submit(ask(pipe), LONG).result().new_tokens == 60
    assert len(heard) == 1


class BadRowEngine(ToyEngine):
    """Logits of a row become NaN when it reaches 200 positions."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(read_bundle(bundle))

    def decode(self, buffers: Buffers) -> None:
        super().decode(buffers)
        bad = buffers.lengths == 200
        if bad.any():
            buffers.logits[bad] = np.nan
            raise LatentError(3001, "the model produced NaN or infinity", where="logits")


def test_3001_one_bad_row_ends_alone(toy_bundle: Path) -> None:
    with Pipeline(BadRowEngine(toy_bundle)) as pipe:
        bad = "x" * (200 - 10 - len("\nQuestion: What?\nAnswer:") - 3)
        options = GenerateOptions(max_new_tokens=40, stop=())
        requests = [ask(pipe, text, options) for text in (TEXTS[0], bad, TEXTS[1], TEXTS[2])]
        with Service(pipe.engine, pipe.tokenizer, rows=4) as service:
            streams = [service.submit(request, options) for request in requests]
            found: list[tuple[str, Answer | LatentWireError]] = []
            for stream in streams:
                pieces = []
                try:
                    pieces += list(stream)
                    found.append(("".join(pieces), stream.result()))
                except LatentWireError as e:
                    found.append(("", e))
        want = [pipe._generator.answers([r], options)[0] for r in requests]
    assert isinstance(found[1][1], LatentError)
    assert found[1][1].code == 3001
    for i in (0, 2, 3):
        expected = want[i]
        assert found[i][1] == expected
        assert isinstance(expected, Answer)
        assert found[i][0] == expected.text  # nothing was told twice when the rows were read again
