"""``latentwire eval`` as a whole: from a checkpoint and a file to a table, kept figures and a picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from latentwire.core.errors import InputError
from latentwire.training import quality as quality_module
from latentwire.training import report as report_module
from latentwire.training.building import build_model, start
from latentwire.training.checkpoint import read_meta, save
from latentwire.training.config import Config
from latentwire.training.data import Item, Question, read_questions
from latentwire.training.evaluate import Answers, measure
from latentwire.training.evaluation.protocol import Protocol
from latentwire.training.evaluation.rescoring import ensemble
from latentwire.training.model import LatentModel
from latentwire.training.report import Request, find, report, store

ROWS = ("none", "first", "shuffled", "latents", "full")


@pytest.fixture(scope="module")
def two(
    tiny_config: Callable[..., Config], tiny_llm: Path, story_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> LatentModel:
    """Two LLMs that differ a little, one encoder, the closed-form start."""
    other = tmp_path_factory.mktemp("llm") / "other-llama"
    shutil.copytree(tiny_llm, other)
    twin = LlamaForCausalLM.from_pretrained(other)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    twin.save_pretrained(other)
    config = tiny_config(llms=(str(tiny_llm), str(other)))
    model = build_model(config, torch.device("cpu"))
    start(model, [i.context for i in read_questions([str(story_file)])])
    return model.eval()


@pytest.fixture
def checkpoint(two: LatentModel, tmp_path: Path) -> Path:
    save(tmp_path / "run" / "best", two, step=1)
    return tmp_path / "run" / "best"


def ask(checkpoint: Path, data: Path, **more: Any) -> Request:
    return Request(str(checkpoint), [data], 8, max_new_tokens=2, **{"rows": ROWS, **more})


def test_recording_one_llm_keeps_what_others_have(checkpoint: Path, story_file: Path, two: LatentModel) -> None:
    first, second = (llm.name for llm in two.llms)
    llms = {llm.name: name for llm, name in zip(two.llms, two.config.llms, strict=True)}
    report(ask(checkpoint, story_file, llms=(llms[first],), record=True), as_json=True)
    one = read_meta(checkpoint)["quality"]
    report(replace(ask(checkpoint, story_file, llms=(llms[second],), record=True), questions=4), as_json=True)
    both = read_meta(checkpoint)["quality"]
    assert set(both["llms"]) == {first, second}
    assert both["questions"] == 4
    kept = both["llms"][first]
    assert kept["measured_on"]["questions"] == 8
    assert {k: v for k, v in kept.items() if k != "measured_on"} == one["llms"][first]
    report(ask(checkpoint, story_file, protocol="one-shot", record=True), as_json=True)
    third = read_meta(checkpoint)["quality"]
    assert {k: v for k, v in third.items() if k != "one_shot"} == both
    assert third["one_shot"]["protocol"]["name"] == "one-shot"
    report(ask(checkpoint, story_file, record=True), as_json=True)
    last = read_meta(checkpoint)["quality"]
    assert last["one_shot"] == third["one_shot"]
    assert "measured_on" not in last["llms"][first]
    # Figures of other weights do not stay.
    meta = read_meta(checkpoint)
    meta["quality"]["checkpoint"] = "0" * 64
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    store(checkpoint, {**last, "llms": {second: last["llms"][second]}})
    assert set(read_meta(checkpoint)["quality"]["llms"]) == {second}


def test_an_interrupted_evaluation_goes_on(
    checkpoint: Path,
    story_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "found" / "quality.json"
    request = ask(checkpoint.parent, story_file, out=out, joint=True, latents=("4", "1/4"))
    report(request, as_json=True)
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert out.with_suffix(".png").stat().st_size > 20_000
    rows = next(iter(found["llms"].values()))["rows"]
    assert set(rows) == {*ROWS, *(f"{b}@{m}" for m in ("4", "1/4") for b in ("first", "shuffled", "latents"))}
    assert rows["latents@4"]["context_positions"] == 4
    lines = out.with_suffix(".rows.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(rows)
    out.with_suffix(".rows.jsonl").write_text("\n".join(lines[:-3]) + "\n" + lines[-1][:50])
    asked: list[str] = []

    def spy(model: Any, llm: Any, items: Any, kind: str, **rest: Any) -> Answers:
        asked.append(kind)
        return measure(model, llm, items, kind, **rest)

    monkeypatch.setattr(quality_module, "measure", spy)
    report(request, as_json=False)
    assert asked == ["first@1/4", "shuffled@1/4", "latents@1/4"]
    assert json.loads(out.read_text()) == found
    shown = capsys.readouterr()
    assert "first 4 tokens of the text" in shown.out
    assert "who answers" in shown.out
    assert "shuffle gap" in shown.err
    # Other questions are other figures.
    report(replace(request, questions=4, latents=(), rows=("none",), joint=False), as_json=True)
    assert asked[-2:] == ["none", "none"]


def test_the_joint_choice_is_the_proposal_that_both_find_likely(two: LatentModel, story_file: Path) -> None:
    items = read_questions([str(story_file)])
    golds = [q.answers[0] for item in items for q in item.questions]
    one, other = (llm.name for llm in two.llms)

    def proposals(texts: Sequence[str]) -> Answers:
        plain = measure(two, two.llms[0], items, "none", max_new_tokens=1)
        f1 = np.array([float(t == g) for t, g in zip(texts, golds, strict=True)])
        return replace(plain, texts=tuple(texts), f1=f1, exact=f1)

    wrong = [golds[(i + 1) % len(golds)] for i in range(len(golds))]
    found = ensemble(two, items, {one: proposals(golds), other: proposals(wrong)}, Protocol())
    expected = []
    for item, gold, bad in zip(items, golds, wrong, strict=True):
        pair = [Item(item.context, (Question(item.questions[0].text, (text,)),)) for text in (gold, bad)]
        score = np.sum([measure(two, llm, pair, "latents").nll for llm in two.llms], axis=0)
        expected.append(gold if score[0] <= score[1] else bad)
    assert found["em"] == np.mean([a == g for a, g in zip(expected, golds, strict=True)])
    assert found["chosen"][one] + found["chosen"][other] == 1
    assert found["single"][one]["em"] == 1
    assert found["agreed"] == 0
    same = ensemble(two, items, {one: proposals(golds), other: proposals(golds)}, Protocol())
    assert (same["em"], same["agreed"], same["minus_best"]) == (1, 1, 0)
    assert ensemble(two, items, {one: proposals([""] * 8), other: proposals([""] * 8)}, Protocol())["f1"] == 0
    with pytest.raises(InputError, match="LW-2111 joint rescoring needs two LLMs"):
        ensemble(two, items, {one: measure(two, two.llms[0], items, "none")}, Protocol())


def test_faults_are_told_before_a_model_is_loaded(
    story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "open_checkpoint", lambda *rest: pytest.fail("loaded"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for change, fault in (
        ({"rows": ("latent",)}, "LW-2111 unknown row latent"),
        ({"latents": ("0",)}, "LW-3210 bad number of latents"),
        ({"example": empty}, "LW-2104 no example"),
        ({"rows": ("none",), "joint": True}, "LW-2111 joint rescoring needs the row"),
        ({"data": [empty]}, "LW-2104 too few held-out contexts"),
    ):
        with pytest.raises(Exception, match=fault):
            report(replace(ask(tmp_path, story_file), **change), as_json=True)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"context": "mill " * 300_000}, "context too long; q.jsonl:1; expected at most 1000000 characters"),
        ({"question": "why " * 2000}, "question too long"),
        ({"answers": ["mill", "mill " * 400]}, "answer too long"),
        ({"question": "  "}, "context or question missing or empty"),
        ({"answers": []}, "answers missing or empty"),
        ({"answers": ["rye"]}, "no answer stands in the context"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"context": "A mill.", "question": "What?", "answers": ["mill"], **row}))
    with pytest.raises(InputError, match=f"LW-2107 {fault}"):
        read_questions([str(path)])


def test_a_run_stands_for_its_best_checkpoint(checkpoint: Path) -> None:
    run = checkpoint.parent
    assert find(str(run)) == find(str(checkpoint)) == checkpoint
    shutil.copytree(checkpoint, run / "last")
    assert find(str(run)) == checkpoint
    shutil.rmtree(checkpoint)
    assert find(str(run)) == run / "last"
    assert find("reference").name == "reference"
