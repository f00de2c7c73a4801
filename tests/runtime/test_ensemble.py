"""Several LLMs, one frame: scores are those of a whole pass, and each rule chooses what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.core.errors import FrameError, InputError, LatentError, LatentWireError
from latentwire.engines.base import Engine
from latentwire.engines.buffers import Buffers
from latentwire.runtime import demo, ensemble
from latentwire.runtime.answer import Answer
from latentwire.runtime.ensemble import F64, Chosen, Ensemble, choose, log_likelihoods
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts.answer import embed
from latentwire.runtime.prompts.build import build
from latentwire.runtime.prompts.prompt import LatentPrompt
from latentwire.runtime.request import Request
from latentwire.runtime.surprise import surprise

QUESTION = "When?"


def whole_pass(pipe: Pipeline, frame: bytes, text: str) -> float:
    """The same figure from a prompt that grows by a token, read anew each time."""
    prompt, total = build(pipe, frame, QUESTION), 0.0
    target = [*pipe.tokenizer.encode(f" {text}"), pipe.bundle.manifest.llm.eos[0]]
    ids, mask = prompt.token_ids, prompt.is_token
    for token in target:
        grown = LatentPrompt(ids, mask, prompt.latents, prompt.target)
        embeds, lengths = embed(pipe.engine, [grown])
        buffers: Buffers = pipe.engine.alloc(1, len(ids))
        pipe.engine.prefill(buffers, embeds, lengths)
        logits = buffers.logits[0].astype(np.float64)
        total += float(logits[token] - np.logaddexp.reduce(logits))
        ids, mask = np.append(ids, token), np.append(mask, True)
    return total / len(target)


def test_scores_are_those_of_a_whole_pass(pipe: Pipeline) -> None:
    (frame,) = pipe.compress(["The bridge was opened in 1932."])
    texts = ["1932", "in the year 1932", "x"]
    (found, nothing) = log_likelihoods(pipe, [frame] * 2, [QUESTION] * 2, [texts, []])
    want = [whole_pass(pipe, frame, t) for t in texts]
    assert isinstance(found, list)
    print(f"maximum difference {np.abs(np.subtract(found, want)).max():.2e}")
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert nothing == []


def test_a_bad_row_does_not_spoil_the_scores_of_others(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = pipe.compress(["The bridge was opened in 1932.", "A tower stands beside it."])
    (alone,) = log_likelihoods(pipe, [good], [QUESTION], [["1932", "x"]])
    poison = pipe.request(bad, QUESTION, GenerateOptions(), "q").latents

    def poisoned(engine: Engine, requests: Sequence[Request], targets: Sequence[Sequence[int]]) -> list[F64]:
        nats = surprise(engine, requests, targets)
        return [n * np.nan if np.array_equal(r.latents, poison) else n for r, n in zip(requests, nats, strict=True)]

    monkeypatch.setattr(ensemble, "surprise", poisoned)
    found = log_likelihoods(pipe, [good, bad, b"junk"], [QUESTION] * 3, [["1932", "x"]] * 3)
    assert isinstance(alone, list)
    np.testing.assert_allclose(found[0], alone, atol=1e-6)  # type: ignore[arg-type]
    assert [(type(f), f.code) for f in found[1:] if isinstance(f, LatentWireError)] == [
        (LatentError, 3001),
        (FrameError, 1101),
    ]


def test_rules() -> None:
    scores = np.array([[-1.0, -2.0, -9.0], [-9.0, -2.0, -9.0], [-9.0, -2.0, -0.5]], np.float64)
    proposals, distinct = ["a", "b", "c"], ["a", "b", "c"]
    assert choose("joint", proposals, distinct, scores) == 1
    assert choose("best", proposals, distinct, scores) == 2
    twice = np.array([[-1.0, -9.0], [-5.0, -9.0], [-9.0, -2.0]], np.float64)
    assert choose("best", ["a", "a", "b"], ["a", "b"], twice) == 0  # who likes it best of those that said it
    assert choose("majority", proposals, distinct, scores) == 1  # one vote each: as joint
    assert choose("majority", ["c", "b", "C "], ["c", "b", "C "], scores) == 2  # two votes against joint's b


def test_together(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "GROUP", 1)  # question after question
    frames = pipe.compress(["The bridge was opened in 1932.", "A tower stands beside it."])
    heard: list[int] = []
    found = Ensemble([pipe, pipe]).answers(frames, [QUESTION, "Where?"], GenerateOptions(), heard.append)
    alone = pipe.answers(frames, [QUESTION, "Where?"])
    assert heard == [1, 1]
    for together, one in zip(found, alone, strict=True):
        assert isinstance(together, Chosen)
        assert isinstance(one, Answer)
        assert (together.text, together.stop) == (one.text, one.stop)
        assert [text for _, text in together.proposals] == [one.text] * 2
        assert together.new_tokens == 2 * one.new_tokens
        assert np.shape(together.scores) == (2, 1)


def test_an_error_stands_in_the_place_of_its_question(pipe: Pipeline) -> None:
    (frame,) = pipe.compress(["The bridge was opened in 1932."])
    found = Ensemble([pipe, pipe]).answers([frame, b"junk", frame], [QUESTION] * 3, GenerateOptions())
    assert [type(f) for f in found] == [Chosen, FrameError, Chosen]


@pytest.mark.parametrize(("count", "rule"), [(1, "joint"), (2, "loudest")])
def test_what_is_no_ensemble(pipe: Pipeline, count: int, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        Ensemble([pipe] * count, rule)  # type: ignore[arg-type]
    assert caught.value.code == 2111


def test_the_command(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"custom_id": "a", "text": "The bridge was opened in 1932."}\n', encoding="utf-8")
    run = CliRunner().invoke
    assert run(app, ["compress", "in.jsonl", "-o", "out", "-b", str(toy_bundle), "-q"]).exit_code == 0
    words = ["generate", "out", "--question", QUESTION, "-b", str(toy_bundle), "--json", "-q"]
    alone = json.loads(run(app, words).stdout)
    together = json.loads(run(app, [*words, "--also", str(toy_bundle), "--ensemble", "majority"]).stdout)
    assert together["answer"] == alone["answer"]
    assert together["proposals"] == [{"llm": "toy", "answer": alone["answer"]}] * 2
    for wrong in (["--ensemble", "best"], ["--also", str(toy_bundle), "--stream"], ["--stream"]):
        assert run(app, [*words, *wrong]).exit_code == 2
    plain = [w for w in words if w != "--json"]
    said = run(app, [*plain, "--also", str(toy_bundle), "--stream"]).stdout
    assert said.splitlines() == [f"toy: {alone['answer']}"] * 2 + [f"chosen: {alone['answer']}"]
    assert run(app, ["generate", "out", "--question", QUESTION]).exit_code == 2  # nobody to answer


def test_llms_by_name(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"custom_id": "a", "text": "The bridge was opened in 1932."}\n', encoding="utf-8")
    run, made = CliRunner().invoke, list[tuple[str, str]]()
    assert run(app, ["compress", "in.jsonl", "-o", "out", "-b", str(toy_bundle), "-q"]).exit_code == 0

    def ready(llm: str, precision: str) -> Path:
        made.append((llm, precision))
        return toy_bundle

    monkeypatch.setattr(demo, "ready_bundle", ready)
    words = ["generate", "out", "--question", QUESTION, "--json", "-q"]
    two = json.loads(run(app, [*words, "--llm", "a", "--llm", "b", "--ensemble", "joint"]).stdout)
    assert made == [("a", "int8"), ("b", "int8")]
    assert len(two["proposals"]) == 2
    # A default of the environment is no third LLM; a bundle that is named is.
    monkeypatch.setenv("LATENTWIRE_BUNDLE", str(toy_bundle))
    assert len(json.loads(run(app, [*words, "--llm", "a", "--llm", "b"]).stdout)["proposals"]) == 2
    assert len(json.loads(run(app, [*words, "-b", str(toy_bundle), "--llm", "b"]).stdout)["proposals"]) == 2
    assert "proposals" not in json.loads(run(app, [*words, "--llm", "a"]).stdout)
    assert "proposals" not in json.loads(run(app, words).stdout)


def test_pieces_of_a_stream_are_the_proposals(pipe: Pipeline, toy_bundle: Path) -> None:
    (frame,) = pipe.compress(["The bridge was opened in 1932."])
    with Pipeline.open(toy_bundle) as other:
        together = Ensemble([pipe, other], "best")
        *events, last = together.stream(frame, QUESTION, GenerateOptions())
        assert [last] == together.answers([frame], [QUESTION], GenerateOptions())
    said = [e[1] for e in events if isinstance(e, tuple)]
    assert sum(isinstance(p, Answer) for p in said) == 2
    assert len(said) > 4  # in pieces, not at once
    assert "".join(p for p in said if isinstance(p, str)) == last.text * 2  # type: ignore[union-attr]
    with pytest.raises(FrameError):
        list(together.stream(b"junk", QUESTION, GenerateOptions()))
