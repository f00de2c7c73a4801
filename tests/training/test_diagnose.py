"""Diagnostics: what the latents hold, whether the path can learn, and what the gates make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.core.errors import InputError
from latentwire.core.prompt import join
from latentwire.training import diagnose as module
from latentwire.training.batch import CUE, task_range
from latentwire.training.building import build_model, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import Item, Question, read_questions
from latentwire.training.diagnose import CHECKS, Gate, Request, diagnose
from latentwire.training.evaluation.fitting import cram, overfit
from latentwire.training.evaluation.reading import Reading, blanks, reading
from latentwire.training.latents import Rule
from latentwire.training.model import LatentModel


@pytest.fixture(scope="module")
def items(story_file: Path) -> list[Item]:
    """Stories told twice, so that crops of 64 tokens can be cut."""
    found = read_questions([str(story_file)])
    return [
        Item(f"{i.context} {i.context} {j.context}", i.questions)
        for i, j in zip(found, found[1:] + found, strict=False)
    ]


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., Config], items: list[Item]) -> LatentModel:
    config = tiny_config(mlp_hidden=128)
    model = build_model(config, torch.device("cpu"))
    start(model, [i.context for i in items])
    return model.eval()


def test_bits_per_latent_by_hand() -> None:
    # 2 nats saved on each of 32 tokens, spread over 16 latents: 4 nats = 4 / ln 2 bits.
    assert Reading(0.5, 1.0, 3.0, 3.0, 32, 16).bits_per_latent == pytest.approx(4 / np.log(2))


def test_reading_asks_for_the_text_behind_its_cue(model: LatentModel, items: list[Item]) -> None:
    llm, texts = model.llms[0], [i.context for i in items[:3]]
    found = reading(model, llm, [*texts, "too short"], Rule(4, True), 40)
    assert (found.tokens, found.latents) == (32, 10)
    total = 0.0
    for text in texts:
        ids = llm.encode(text)[:40]
        with torch.no_grad():
            z = model.encode(torch.tensor([ids]), torch.tensor([40]), 10)
            rows = model.adapter(llm)(z)
            own = join([llm.special.bos, range(10), task_range("reconstruct", 10, 2), ids])
            ids_, index = (torch.from_numpy(a)[None] for a in (own.ids, own.row_index))
            embeds = llm.splice(ids_, index, rows)
            logits = llm.model(inputs_embeds=embeds).logits[0, -1 - (40 - CUE) : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[CUE:])))
    assert found.nll == pytest.approx(total / 3, abs=1e-4)
    assert found.shuffled != found.nll != found.unconditional


def test_blanks_are_asked_where_there_are_any(items: list[Item]) -> None:
    asked = blanks([*items[:2], Item("No.", (Question("?", ("No",)),))])
    assert [i.context for i in asked] == [i.context for i in items[:2]]
    assert all(q.answers[0] in i.context for i in asked for q in i.questions)


def test_overfitting_memorises_and_leaves_no_trace(model: LatentModel, items: list[Item]) -> None:
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit = overfit(model, model.llms[0], items[:4], 250, 2e-2)
    assert fit.nll < 0.05
    assert fit.exact == 1.0
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    short = overfit(model, model.llms[0], items[:4], 2, 2e-2)
    assert short.steps == 2
    assert short.nll > 0.5


def test_free_vectors_hold_texts_that_fixed_ones_do_not(model: LatentModel, items: list[Item]) -> None:
    texts = [i.context for i in items[:2]]
    fit = cram(model.llms[0], texts, 300, vectors=8, length=12)
    assert fit.exact > 0.9
    assert cram(model.llms[0], texts, 1, vectors=8, length=12).exact < 0.5


def test_gates_say_go_and_where_to_look(
    model: LatentModel, items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "run" / "last", model, step=7)
    data = tmp_path / "q.jsonl"
    rows = [{"context": i.context, "question": i.questions[0].text, "answers": i.questions[0].answers} for i in items]
    data.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "found.json"
    passed = diagnose(Request(str(tmp_path / "run"), [data], steps=2, out=out), as_json=False)
    found = json.loads(out.read_text())
    own = next(iter(found["llms"].values()))
    assert set(own["figures"]) == set(CHECKS)
    assert {g["check"] for g in own["gates"]} == set(CHECKS)
    assert passed is found["go"] is False
    assert "gradients do not arrive" in capsys.readouterr().out
    assert Gate("x", "y", 0.4, 0.3, "").passed
    assert not Gate("x", "y", 0.4, 0.3, "", below=True).passed
    assert not Gate("x", "y", None, 0.3, "").passed
    with pytest.raises(InputError, match="LW-2111 unknown check loss"):
        diagnose(Request("nowhere", [data], checks=("loss",)), as_json=True)


def test_go_is_when_every_gate_is_passed(
    model: LatentModel, story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, model, step=7)

    def fixed(value: float) -> Any:
        def check(model: LatentModel, llm: Any, items: Sequence[Item], steps: int) -> module.Found:
            return {}, [Gate("answers", "x", value, 0.3, "")]

        return check

    for value, go in ((0.5, True), (0.1, False)):
        monkeypatch.setitem(module.RUN, "answers", fixed(value))
        assert diagnose(Request(str(tmp_path), [story_file], checks=("answers",)), as_json=True) is go
