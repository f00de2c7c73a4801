"""Worked examples in front of training contexts: what they are, where they stand, how many micro-batches have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.training.batch import example_ids
from latentwire.training.config import Config
from latentwire.training.data import EXCERPT, Item, Question, worked_example
from latentwire.training.evaluation.protocol import EXAMPLE, Protocol
from latentwire.training.train import Trainer

Make = Callable[..., Config]
LONG = "It rained for days. " * 30


def test_an_excerpt_holds_the_answer_and_what_follows() -> None:
    text = f"{LONG}Then the dam at Orsk broke. Nobody was hurt. {LONG}"
    example = worked_example(Item(text, (Question("What broke?", ("nothing", "the dam")),)), 0)
    assert example.context.startswith("Then the dam at Orsk broke. Nobody was hurt. It rained")
    assert len(example.context) <= EXCERPT
    assert example.questions == (Question("What broke?", ("the dam",)),)


def test_an_answer_of_two_sentences_needs_the_whole_text() -> None:
    text = f"{LONG}He said: Stop. Go home. Then he left."
    example = worked_example(Item(text, (Question("What did he say?", ("Stop. Go home",)),)), 0)
    assert "Stop. Go home" in example.context


def test_one_long_sentence_is_kept_whole() -> None:
    text = "word " * 200 + "end."
    assert worked_example(Item(text, (Question("?", ("end",)),)), 0).context == text


def test_they_open_their_share_of_micro_batches_of_questions(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=40, example_share=0.5, prose_share=0.5), tmp_path)
    maker, llm = trainer.maker, trainer.model.llms[0]
    opened = {"questions": 0, "prose": 0}
    for number in range(40):
        work = maker(number)
        example = maker._example(maker.span(number), number) if work.origin[0][0] == "questions" else None
        ids, rows = work.batch.trees[0].ids[0].tolist(), work.batch.trees[0].row_index[0].tolist()
        first = rows.index(0)
        opened[work.origin[0][0]] += first > 1
        assert ids[1:first] == (example_ids(llm, example) if example else [])
        again = maker(number).batch.trees[0]
        assert torch.equal(again.ids, work.batch.trees[0].ids)
    assert opened["prose"] == 0
    assert 5 <= opened["questions"] <= 15


def test_training_and_measuring_write_an_example_alike(make: Make, tmp_path: Path) -> None:
    llm = Trainer(make(steps=1), tmp_path).model.llms[0]
    assert Protocol("one-shot").opening(llm) == example_ids(llm, EXAMPLE)
    assert llm.tokenizer.decode(example_ids(llm, EXAMPLE)).endswith(
        "\nQuestion: Who lit the lamp at Port Ellery?\nAnswer: Martha Quill\n\n"
    )


def test_a_teacher_reads_the_same_example(make: Make, tmp_path: Path) -> None:
    maker = Trainer(make(steps=1, example_share=1.0, kd_weight=0.5), tmp_path).maker
    work = maker(0)
    own, teacher = work.batch.trees[0], work.teachers[0]
    size = own.row_index[0].tolist().index(0)
    assert size > 1
    assert own.ids[0, :size].tolist() == teacher.ids[0, :size].tolist()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*example_share"):
        Config(example_share=share)
