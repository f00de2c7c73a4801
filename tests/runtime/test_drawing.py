"""What a frame keeps: the figures behind the drawing against plain computation, the page and the picture."""

from __future__ import annotations

import html.parser
import json
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from latentwire.cli import app
from latentwire.core.errors import InputError
from latentwire.core.prompt import question_ids
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime import kept as module
from latentwire.runtime import message
from latentwire.runtime.kept import Kept, Latent, Near, Word, kept
from latentwire.runtime.kept_colours import colour
from latentwire.runtime.kept_html import page
from latentwire.runtime.kept_png import COLUMNS, png, wrapped
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.surprise import surprise

TEXT = "Mira keeps 14 goats on Sorra. The ferry comes on Friday."


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def found(toy_bundle: Path) -> Kept:
    with Pipeline.open(toy_bundle) as pipe:
        frames = message.unpack(pipe.compress([TEXT])[0])
        return kept(pipe, frames, TEXT, "Who?")


def test_surprise_is_that_of_a_prompt_of_its_own(pipe: Pipeline) -> None:
    """Each token again as the only one behind a prompt that already holds the tokens before it."""
    frame = message.unpack(pipe.compress([TEXT])[0])
    asked = pipe.request(frame, "Who?", GenerateOptions(), "x")
    empty = replace(asked, latents=np.empty((0, 0), np.float32))
    targets = [pipe.tokenizer.encode(text) for text in (" Mira", " a", " goats on")]
    requests = [asked, empty, replace(asked, question=tuple(question_ids(pipe.tokenizer.encode, "How many goats?")))]
    together = surprise(pipe.engine, requests, targets, batch=2)
    for request, target, nats in zip(requests, targets, together, strict=True):
        assert len(nats) == len(target)
        for n, token in enumerate(target):
            longer = replace(request, question=(*request.question, *target[:n]))
            (alone,) = surprise(pipe.engine, [longer], [[token]])
            assert alone[0] == pytest.approx(nats[n], abs=1e-4)


def test_surprise_agrees_with_the_greedy_choice(pipe: Pipeline) -> None:
    frame = message.unpack(pipe.compress([TEXT])[0])
    asked = pipe.request(frame, "Who?", GenerateOptions(), "x")
    answer = pipe.generate([frame.pack()], ["Who?"], GenerateOptions(max_new_tokens=1, stop=()))[0]
    best = pipe.tokenizer.encode(answer)[0]
    others = [surprise(pipe.engine, [asked], [[token]])[0][0] for token in range(40, 90)]
    assert surprise(pipe.engine, [asked], [[best]])[0][0] <= min(others) + 1e-6


def test_nearest_tokens_are_the_nearest(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: Any = pipe.engine.weights  # type: ignore[attr-defined]
    z = message.unpack(pipe.compress([TEXT])[0]).z()
    rows = z @ weights.from_z
    cosine = (rows / np.linalg.norm(rows, axis=1)[:, None]) @ (
        weights.embedding / np.linalg.norm(weights.embedding, axis=1)[:, None]
    ).T
    for block in (7, 100, 10_000):
        monkeypatch.setattr(module, "BLOCK", block)
        latents = module.nearest(pipe, z)
        for one, row in zip(latents, cosine, strict=True):
            best = np.sort(row)[::-1][: module.NEAR]
            assert [n.cosine for n in one.near] == pytest.approx(best, abs=1e-3)


def test_latents_stand_for_the_whole_text(found: Kept) -> None:
    edges = [(one.start, one.stop) for one in found.latents]
    assert edges[0][0] == 0
    assert edges[-1][1] == len(TEXT)
    assert all(a[1] == b[0] for a, b in pairwise(edges))


def test_words_are_names_numbers_and_long_words(found: Kept) -> None:
    said = [TEXT[w.start : w.stop] for w in found.words]
    assert said == ["14", "Sorra", "Friday"]
    for word in found.words:
        assert word.nats > 0
        assert word.kept == pytest.approx((word.without - word.nats) / word.without)


def test_protected_words_are_marked(tmp_path: Path) -> None:
    with Pipeline.open(write_toy_bundle(tmp_path / "b").path) as pipe:
        frames = message.unpack(pipe.compress([TEXT], CompressOptions(codec="hybrid"))[0])
        drawn = kept(pipe, frames, TEXT)
    assert "14" in drawn.verbatim
    marks = {TEXT[w.start : w.stop]: w.verbatim for w in drawn.words}
    assert marks["14"] is True
    assert "Travels as it is" in page(drawn)


def test_influence_is_zero_where_latents_are_alike(pipe: Pipeline) -> None:
    frame = message.unpack(pipe.compress([TEXT])[0])
    asked = pipe.request(frame, "Who?", GenerateOptions(), "x")
    same = replace(asked, latents=np.tile(asked.latents[:1], (4, 1)))
    assert module.influence(pipe, same, "Mira") == pytest.approx([0.0] * 4, abs=1e-4)
    assert max(map(abs, module.influence(pipe, asked, "Mira"))) > 1e-3


def test_a_text_frame_has_nothing_to_draw(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="LW-2111 nothing to draw"):
        kept(pipe, message.from_text(TEXT))


@pytest.mark.parametrize(("share", "expected"), [(0, "#ffffff"), (1, "#78be8c"), (7, "#78be8c"), (-1, "#f0c4b6")])
def test_colours(share: float, expected: str) -> None:
    assert colour(share) == expected


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_the_text_and_runs_nothing(found: Kept) -> None:
    evil = '<script>alert(1)</script> & \x1b[31m "quotes"'
    hostile = replace(
        found,
        text=TEXT + evil,
        question=evil,
        answer=evil,
        verbatim=(evil,),
        latents=(Latent(0, (Near(evil, 0.5),), 0, len(TEXT) + len(evil), 1.0),),
    )
    read = _Page()
    read.feed(page(hostile))
    assert "script" not in read.tags
    assert TEXT in "".join(read.text.split("\n"))
    assert "<script>alert(1)</script>" in read.text
    assert "\x1b" not in read.text
    assert "default-src 'none'" in page(hostile)
    assert "engines do not give" in read.text


def test_lines_of_the_picture_hold_the_whole_text(found: Kept) -> None:
    text = "\n".join([TEXT] * 5) + " " + "x" * 300
    words = tuple(Word(at, at + 4, 1.0, 2.0, False) for at in (0, 57))
    lines = list(wrapped(text, words))
    assert all(sum(len(part) for part, _ in line) <= COLUMNS for line in lines)
    assert "".join("".join(p for p, _ in line) for line in lines).replace(" ", "") == text.replace("\n", "").replace(
        " ", ""
    )
    assert [part for line in lines for part, word in line if word] == ["Mira", "Mira"]


def test_the_picture_is_a_png(found: Kept) -> None:
    data = png(found)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = struct.unpack(">II", data[16:24])
    assert wide == 1210
    assert high > 300


def test_the_command(toy_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "kept.html"
    result = call(text, "--draw", out, "-b", toy_bundle, "--question", "Who?", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["text"] == TEXT
    assert len(told["words"]) == 3
    assert "<mark" in out.read_text()
    with Pipeline.open(toy_bundle) as pipe:
        (tmp_path / "m.lwf").write_bytes(pipe.compress([TEXT])[0])
    assert call(tmp_path / "m.lwf", "--draw", tmp_path / "bare.html", "-b", toy_bundle).exit_code == 0
    assert "<mark" not in (tmp_path / "bare.html").read_text()
    assert call(tmp_path / "m.lwf", "--draw", tmp_path / "k.png", "-b", toy_bundle, "--text", text).exit_code == 0
    assert (tmp_path / "k.png").read_bytes()[1:4] == b"PNG"


def test_bad_requests(toy_bundle: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    monkeypatch.delenv("LATENTWIRE_BUNDLE", raising=False)
    assert call(text, "--draw", tmp_path / "x.png").exit_code == 2
    with Pipeline.open(other_bundle) as pipe:
        (tmp_path / "m.lwf").write_bytes(pipe.compress([TEXT])[0])
    (tmp_path / "noise.bin").write_bytes(b"\xff\xfe\x00noise")
    (tmp_path / "long.txt").write_text(TEXT * 9)
    for path, out, label in [
        (text, "x.pdf", "LW-2111"),
        (tmp_path / "absent", "x.png", "LW-2106"),
        (tmp_path / "noise.bin", "x.png", "LW-2110"),
        (tmp_path / "m.lwf", "x.png", "LW-3101"),
        (tmp_path / "long.txt", "x.png", "LW-2006"),
    ]:
        result = call(path, "--draw", tmp_path / out, "-b", toy_bundle)
        assert label in result.stderr, (path, result.output)
        assert result.exit_code not in (0, 1)
        assert not (tmp_path / out).exists()
