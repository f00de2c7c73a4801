"""The curriculum: which stage a step belongs to, how passages are cut and continued, what a batch then holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentwire.core.errors import ModelError
from latentwire.training.batch import AHEAD, Limits, make_batch
from latentwire.training.config import TASKS, Config, from_mapping, load
from latentwire.training.crops import ROOM, view
from latentwire.training.data import Item, Question
from latentwire.training.llm import Special
from latentwire.training.stages import Stage, at, spans
from latentwire.training.tree import KINDS

PASSAGE = " ".join(f"w{i:03d}" for i in range(300))


def words(text: str) -> list[int]:
    """A token for each word, its number."""
    return [int(word[1:]) for word in text.split()]


class _Reader:
    special = Special((990,), (991,), 991)

    def encode(self, text: str) -> list[int]:
        return words(text) if text.strip().startswith("w") else [5]


def test_stages_by_steps_and_by_share() -> None:
    found = spans([Stage("a", steps=10), Stage("b", share=0.5), Stage("c", steps=40)], 100)
    assert [(s.stage.name, s.start, s.end) for s in found] == [("a", 0, 10), ("b", 10, 60), ("c", 60, 100)]
    thirds = spans([Stage(name, share=1 / 3) for name in "abc"], 100)
    assert [(s.start, s.end) for s in thirds] == [(0, 33), (33, 67), (67, 100)]
    assert [at(found, step).stage.name for step in (0, 9, 10, 59, 60, 99, 100)] == list("aabbccc")


def test_without_stages_a_run_is_one() -> None:
    (only,) = Config(steps=7).spans()
    assert (only.stage.name, only.start, only.end, only.crop(3)) == ("main", 0, 7, 0)


def test_crops_grow_inside_a_stage() -> None:
    (_, span) = spans([Stage("x", steps=4), Stage("a", steps=9, crops=(32, 64, 128))], 13)
    assert [span.crop(step) for step in range(4, 13)] == [32] * 3 + [64] * 3 + [128] * 3


@pytest.mark.parametrize(
    "stages",
    [
        [{"name": "a", "steps": 5}],
        [{"name": "a", "steps": 200}],
        [{"name": "a", "share": 0.5}],
        [{"name": "a", "share": 1.0, "bundle": "all"}],
        [{"name": "a", "share": 1.0, "train": []}],
        [{"name": "a", "share": 1.0, "train": ["llm"]}],
        [{"name": "a", "share": 1.0, "crops": [15]}],
        [{"name": "a", "share": 1.0, "lr": -1}],
        [{"name": "a", "share": 1.0, "prose_share": 2}],
        [{"name": "a", "share": 1.0, "continue_share": 0.5}],
        [{"name": "a", "share": 1.0, "llms": ["gpt-2"]}],
        [{"name": "a", "share": 1.0, "latent_choices": ["2/3"]}],
        [{"name": "a", "share": 1.0, "unknown": 1}],
        [{"name": "a", "share": 1.0, "steps": 5}],
        [{"name": "a"}],
        ["a"],
        {"name": "a"},
    ],
)
def test_bad_stages(stages: object) -> None:
    with pytest.raises(ModelError, match="LW-3210"):
        from_mapping({"stage": stages, "steps": 100}, "run.toml")


def test_stages_in_toml_survive_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'steps = 20\ntasks = ["answer", "reconstruct", "continue"]\n'
        '[[stage]]\nname = "warm"\nshare = 0.25\ncrops = [32, 64]\nbundle = "pretrain"\nlatent_choices = ["1/4", 8]\n'
        '[[stage]]\nname = "mix"\nshare = 0.75\ncontinue_share = 0.35\nlr_copied = 0.5\n'
    )
    config = load(tmp_path / "run.toml")
    assert config.stage[0].latent_choices == ("1/4", 8)
    assert config.stage[1] == Stage("mix", share=0.75, continue_share=0.35, lr_copied=0.5)
    assert from_mapping(config.to_json(), "meta.json") == config


@pytest.mark.parametrize("size", [16, 32, 128])
def test_a_crop_is_a_stretch_of_the_passage(size: int) -> None:
    starts = set()
    for seed in range(20):
        found = view(Item(PASSAGE, ()), np.random.default_rng(seed), words, size=size, cropped=True, continue_share=0.5)
        own, rest = words(found.item.context), words(found.rest)
        assert own == list(range(own[0], own[0] + len(own)))
        assert size * 0.8 <= len(own) <= size
        if rest:
            assert rest[0] == own[-1] + 1
            assert rest[-1] == 299
            assert len(rest) >= ROOM - 2
        starts.add(own[0])
    assert len(starts) > 10


def test_questions_and_short_passages_stay_whole() -> None:
    asked = Item(PASSAGE, (Question("q", ("w001",)),))
    short = Item("w001 w002 w003", ())
    for item in (asked, short):
        found = view(item, np.random.default_rng(0), words, size=16, cropped=True, continue_share=1.0)
        assert (found.item, found.rest) == (item, "")


def test_text_without_spaces_is_cut_too() -> None:
    found = view(
        Item("\u6c34" * 200, ()),
        np.random.default_rng(1),
        lambda text: [1] * len(text),
        size=32,
        cropped=True,
        continue_share=1.0,
    )
    assert found.item.context == "\u6c34" * 32
    assert len(found.rest) >= ROOM


def test_a_continuation_asks_for_what_follows_the_encoded_part() -> None:
    limits = Limits(8, 2, 64, 400, reconstruct_share=1.0, continue_share=1.0)
    batch = make_batch([Item(PASSAGE, ())] * 3, words, [_Reader()], limits, (0, 1, 5))
    (tree,) = batch.trees
    number = KINDS.index("continue")
    assert batch.lengths.max() <= 64
    for row in range(3):
        targets = tree.labels[row][(tree.task[row] == number) & (tree.labels[row] >= 0)].tolist()
        last = int(batch.input_ids[row, batch.lengths[row] - 1])
        assert targets == list(range(last + 1, last + 1 + len(targets)))
        assert AHEAD[0] <= len(targets) <= AHEAD[1]
        # Its own task rows stand before it: the third pair behind eight latents.
        rows = tree.row_index[row][(tree.task[row] == number) & (tree.row_index[row] >= 0)].tolist()
        assert rows == [8 + 4, 8 + 5]
    again = make_batch([Item(PASSAGE, ())] * 3, words, [_Reader()], limits, (0, 1, 5))
    assert again.trees[0].ids.tolist() == tree.ids.tolist()


def test_half_of_a_short_passage_is_continued() -> None:
    text = " ".join(f"w{i:03d}" for i in range(80))
    found = view(Item(text, ()), np.random.default_rng(0), words, size=512, cropped=False, continue_share=1.0)
    assert words(found.item.context) + words(found.rest) == list(range(80))
    assert 36 <= len(words(found.rest)) <= 44


def test_a_short_crop_asks_for_each_stretch_once() -> None:
    limits = Limits(8, 2, 512, 800, reconstruct_share=1.0, crop=32)
    tree = make_batch([Item(PASSAGE, ())], words, [_Reader()], limits, (0, 1, 5)).trees[0]
    # A crop of 32 words has room for one cue of 8 and the 24 behind it.
    assert tree.branch.max() == 1


def test_the_teacher_reads_the_part_that_is_encoded_and_no_more() -> None:
    limits = Limits(8, 2, 512, 400, continue_share=1.0, crop=32)
    read = [make_batch([Item(PASSAGE, ())], words, [_Reader()], limits, (0, 1, 5), text) for text in (False, True)]
    prefix = read[1].trees[0].ids[read[1].trees[0].branch == 0].tolist()
    assert prefix == [990, *read[0].input_ids[0, : read[0].lengths[0]].tolist()]


class _Any(_Reader):
    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def test_repetition_alone_asks_nothing_else() -> None:
    """At a share of 1 no blank is asked for; below it every passage that has one asks at least one."""
    passage = [Item("The bridge at Tolmin was built by Anton Kovac in 1887, beside the mill. " * 3, ())]
    for share, asked in ((1.0, False), (0.99, True)):
        limits = Limits(8, 2, 512, 400, reconstruct_share=share)
        for number in range(4):
            tree = make_batch(passage, _Any().encode, [_Any()], limits, (0, 1, number)).trees[0]
            counts = dict(zip(KINDS, tree.counts, strict=True))
            assert (counts["cloze"] > 0) == asked
            assert counts["reconstruct"]


def test_continuing_needs_its_task_rows() -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*tasks"):
        Config(continue_share=0.5)
    assert Config(continue_share=0.5, tasks=TASKS).tasks == TASKS


def test_configs_that_ship_are_sound(root: Path) -> None:
    configs = {path.name: load(path) for path in (root / "reference").glob("train-*.toml")}
    assert {"train-1.toml", "train-gpu.toml"} <= configs.keys()
    assert all(span.end > span.start for config in configs.values() for span in config.spans())
