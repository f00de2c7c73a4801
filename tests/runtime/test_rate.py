"""The rate that was asked for is kept or refused, and the text travels where that is better."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from latentwire.core.errors import InputError, LatentError, LatentWireError, RowError
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime import codec, fallback, fit, message, wire
from latentwire.runtime.cli import app
from latentwire.runtime.codec import Codec
from latentwire.runtime.compress import Compressed
from latentwire.runtime.jobs.table import read_table
from latentwire.runtime.message import Message, code_latents, from_latents
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline

from .conftest import TEXTS

LONG = "The 12 bridges of Paris were opened in 1932. " * 9
CHUNK = CompressOptions(on_too_long="chunk")


@pytest.fixture(scope="module")
def fsq_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("toy"), quantiser=True).path


@pytest.fixture
def fsq_pipe(fsq_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(fsq_bundle) as opened:
        yield opened


def rows(pipe: Pipeline, texts: list[str], **options: Any) -> list[Compressed | LatentWireError]:
    return pipe.compress_rows(texts, dataclasses.replace(CHUNK, **options))


@given(
    limit=st.integers(1, 4000),
    asked=st.integers(1, 64),
    chunks=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    which=st.sampled_from([(Codec.F16, 0), (Codec.I8, 0), (Codec.FSQ, 1), (Codec.FSQ, 2)]),
)
def test_as_many_latents_as_fit(limit: int, asked: int, chunks: list[int], which: tuple[Codec, int]) -> None:
    m = fit.most_latents(limit, asked, *which, 8, chunks)

    def size(latents: int) -> int:
        return fit.frames_size(*which, 8, [min(latents, tokens) for tokens in chunks])

    assert m == 0 or size(m) <= limit
    assert m == asked or size(m + 1) > limit
    assert fit.most_latents(None, asked, *which, 8, chunks) == asked


@pytest.mark.parametrize("name", ["i8", "f16", "fsq", "hybrid"])
@pytest.mark.parametrize("rate", [{"max_bytes": 150}, {"ratio": 0.7}, {"ratio": 1.2, "max_bytes": 150}])
def test_no_row_leaves_the_rate(fsq_pipe: Pipeline, name: Any, rate: dict[str, Any]) -> None:
    texts = [*TEXTS, LONG, "x" * 64, LONG[:200]]
    latents: set[int] = set()
    for text, found in zip(texts, rows(fsq_pipe, texts, codec=name, latents=16, **rate), strict=True):
        limits = [rate.get("max_bytes", 10**9), int(len(text.encode()) / rate.get("ratio", 1e-9))]
        if isinstance(found, Compressed):
            assert len(found.message.pack()) <= min(limits)
            latents |= {f.m for f in found.message.frames}
        else:
            assert found.code == 2014
            assert str(min(limits)) in found.expected
    assert latents


def test_a_row_gets_what_it_would_get_alone(fsq_pipe: Pipeline) -> None:
    """Rows with other numbers of latents in the same call change nothing."""
    texts = [LONG, LONG[:50], LONG[:120], LONG[:90]]
    together = rows(fsq_pipe, texts, codec="fsq", ratio=1.0, latents=16)
    assert len({f.message.latents for f in together if isinstance(f, Compressed)}) > 1
    for text, found in zip(texts, together, strict=True):
        (alone,) = rows(fsq_pipe, [text], codec="fsq", ratio=1.0, latents=16)
        assert isinstance(found, Compressed)
        assert isinstance(alone, Compressed)
        assert found.message.pack() == alone.message.pack()


def test_without_a_rate_nothing_changes(pipe: Pipeline) -> None:
    assert rows(pipe, TEXTS) == rows(pipe, TEXTS, max_bytes=1 << 20)


@pytest.mark.parametrize("name", ["fsq", "hybrid", "text"])
def test_2014_names_row_limit_and_way_out(fsq_pipe: Pipeline, name: Any) -> None:
    (found,) = fsq_pipe.compress_rows([LONG], dataclasses.replace(CHUNK, codec=name, max_bytes=27), ["docs.jsonl:3"])
    assert isinstance(found, RowError)
    assert found.code == 2014
    assert found.where == "docs.jsonl:3"
    assert "--max-bytes 27" in found.expected
    assert "fallback" in found.fix
    assert ("--protect" in found.fix) == (name == "hybrid")


def test_bytes_that_hold_no_latent_are_refused_before_work(pipe: Pipeline) -> None:
    with pytest.raises(InputError) as caught:
        rows(pipe, ["fine"], codec="i8", max_bytes=35)
    assert caught.value.code == 2111
    assert "36" in caught.value.expected  # 24 + 4 + 8
    (found,) = rows(pipe, [TEXTS[1]], codec="i8", max_bytes=36)
    assert isinstance(found, Compressed)
    assert found.message.latents == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"ratio": 0},
        {"ratio": -1.0},
        {"ratio": float("nan")},
        {"max_bytes": 0},
        {"protect": "all"},
        {"fallback": "yes"},
        {"min_fidelity": 2},
    ],
)
def test_2111_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        CompressOptions(**bad)
    assert caught.value.code == 2111
    assert next(iter(bad)) in caught.value.where


def test_text_travels_where_it_is_smaller(fsq_pipe: Pipeline) -> None:
    texts = ["Short.", "The same words again. " * 2, TEXTS[0]]
    sent = rows(fsq_pipe, texts, codec="fsq", fallback="size")
    for text, found, latents in zip(texts, sent, rows(fsq_pipe, texts, codec="fsq"), strict=True):
        assert isinstance(found, Compressed)
        assert isinstance(latents, Compressed)
        plain = message.from_text(text, fallback=True)
        assert found.message == min(plain, latents.message, key=lambda m: len(m.pack()))
    assert {f.message.is_text for f in sent if isinstance(f, Compressed)} == {True, False}
    (first, *_) = sent
    assert isinstance(first, Compressed)
    assert first.message.frames[0].flags == wire.FALLBACK
    assert first.message.text() == "Short."
    assert len(fsq_pipe.generate([first.message.pack()], ["What?"])) == 1


def test_text_travels_where_it_alone_fits(fsq_pipe: Pipeline) -> None:
    text = "again and again " * 40
    (refused,) = rows(fsq_pipe, [text], codec="fsq", ratio=8)
    assert isinstance(refused, RowError)
    (found,) = rows(fsq_pipe, [text], codec="fsq", ratio=8, fallback="size")
    assert isinstance(found, Compressed)
    assert found.message.is_text
    assert len(found.message.pack()) * 8 <= len(text)
    (neither,) = rows(fsq_pipe, [TEXTS[3]], codec="fsq", max_bytes=27, fallback="size")
    assert isinstance(neither, RowError)
    assert neither.code == 2014


def test_latents_that_do_not_survive_their_codec_are_not_sent(fsq_pipe: Pipeline) -> None:
    """The toy's 16 codes of 4 levels lose much; the measure says so, and the threshold decides."""
    (z,) = fsq_pipe.compress_rows([TEXTS[1]], CompressOptions("f16"))
    (codes,) = fsq_pipe.compress_rows([TEXTS[1]], CompressOptions("fsq"))
    assert isinstance(z, Compressed)
    assert isinstance(codes, Compressed)
    coded = message.code_codes(codes.message.codes())
    found = fallback.fidelity(fsq_pipe.engine, z.message.z(), codes.message.codes(), coded)
    assert 0 < found < 0.9999
    for bound, is_text in ((found - 0.01, False), (found + 0.01, True)):
        (sent,) = rows(fsq_pipe, [TEXTS[1] * 1], codec="fsq", latents=1, fallback="check", min_fidelity=0)
        assert isinstance(sent, Compressed)
        assert not sent.message.is_text
        (sent,) = rows(fsq_pipe, [TEXTS[1]], codec="fsq", fallback="check", min_fidelity=bound)
        assert isinstance(sent, Compressed)
        assert sent.message.is_text == is_text
    (size,) = rows(fsq_pipe, [TEXTS[1]], codec="fsq", fallback="size", min_fidelity=1)
    assert isinstance(size, Compressed)
    assert not size.message.is_text


def test_fidelity_is_a_cosine(pipe: Pipeline) -> None:
    z = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    for kind in (Codec.F16, Codec.I8):
        assert fallback.fidelity(pipe.engine, z, None, code_latents(z, kind)) == pytest.approx(1, abs=1e-4)
    other = code_latents(np.array([[-1, -2, -3, -4], [1, 0, 0, 0]], np.float32), Codec.F16)
    assert fallback.fidelity(pipe.engine, z, None, other) == pytest.approx(-0.5, abs=1e-4)


@pytest.mark.parametrize(("rule", "is_text"), [("off", False), ("size", False), ("check", True)])
def test_latents_that_are_not_finite(rule: Any, is_text: bool) -> None:
    bad = LatentError(3001, "latents are not finite")
    sent = fallback.choose("text", bad, True, None, CompressOptions(fallback=rule), "row 1")
    assert (sent is bad) != is_text
    assert isinstance(sent, Message) == is_text
    if is_text:
        assert fallback.choose("text", bad, True, 3, CompressOptions(fallback=rule), "row 1") is bad


def test_a_text_that_is_unfaithful_and_too_large_is_refused() -> None:
    made = from_latents([np.ones((1, 4), np.float32)], Codec.F16, b"abcd")
    options = CompressOptions(fallback="check", max_bytes=40)
    refused = fallback.choose("x" + LONG, made, False, 40, options, "row 1")
    assert isinstance(refused, RowError)
    assert refused.code == 2014
    assert codec.codec_name(made.frames[0].codec) == "f16"


def test_the_summary_of_a_job_tells_what_was_asked_and_what_came(fsq_bundle: Path, tmp_path: Path) -> None:
    lines = [{"custom_id": f"r{i}", "text": text} for i, text in enumerate([*TEXTS[:3], "again and again " * 40])]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ["compress", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"), "--bundle", str(fsq_bundle)]
    rate = ["--codec", "hybrid", "--latents", "6", "--max-bytes", "90", "--ratio", "0.3", "--fallback", "size"]
    done = CliRunner().invoke(app, [*words, "--on-too-long", "chunk", *rate], env={"COLUMNS": "200"})
    assert done.exit_code == 3, done.output  # six bytes of text leave no room for any frame
    assert "LW-2014 x 1" in done.output
    assert "6 latents a text, text at least 0.3 times the frames, at most 90 bytes a text" in done.output
    found = [row.message for row in read_table(tmp_path / "out" / "data" / "part-00000.parquet") if row.message]
    texts = sum(bool(m.frames[0].flags & wire.FALLBACK) for m in found)
    assert texts
    assert f"{texts} rows" in done.output
    assert all(len(m.pack()) <= 90 for m in found)
