"""Several LLMs, one frame: scores are those of a whole pass, and each rule chooses what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.core.errors import FrameError, InputError
from latentwire.engines.buffers import Buffers
from latentwire.runtime.answer import Answer
from latentwire.runtime.ensemble import Chosen, Ensemble, choose, log_likelihoods
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts.answer import embed
from latentwire.runtime.prompts.build import build
from latentwire.runtime.prompts.prompt import LatentPrompt

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
    found = log_likelihoods(pipe, frame, QUESTION, texts)
    want = [whole_pass(pipe, frame, t) for t in texts]
    print(f"maximum difference {np.abs(np.subtract(found, want)).max():.2e}")
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert log_likelihoods(pipe, frame, QUESTION, []) == []


def test_rules() -> None:
    scores = np.array([[-1.0, -2.0, -9.0], [-9.0, -2.0, -9.0], [-9.0, -2.0, -0.5]], np.float64)
    proposals, distinct = ["a", "b", "c"], ["a", "b", "c"]
    assert choose("joint", proposals, distinct, scores) == 1
    assert choose("best", proposals, distinct, scores) == 2
    assert choose("majority", proposals, distinct, scores) == 1  # one vote each: as joint
    assert choose("majority", ["c", "b", "C "], ["c", "b", "C "], scores) == 2  # two votes against joint's b


def test_together(pipe: Pipeline) -> None:
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
    for wrong in (["--ensemble", "best"], ["--also", str(toy_bundle), "--stream"]):
        assert run(app, [*words, *wrong]).exit_code == 2
