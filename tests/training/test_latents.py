"""How many latents a text gets: rules, batches that draw one, encoders that obey it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.training.batch import Limits, make_batch
from latentwire.training.building import build_model, start
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.latents import Rule, draw, parse
from latentwire.training.llm import LMWrapper
from latentwire.training.model import LatentModel
from latentwire.training.pooling import span_weights
from latentwire.training.train import Trainer

CPU = torch.device("cpu")
LIMITS = Limits(8, 2, 64, 64)
SEED = (0, 1, 2)


@pytest.fixture
def make(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    return partial(tiny_config, mlp_hidden=16, micro_batch=2)


@pytest.mark.parametrize(
    ("given", "tokens", "expected"),
    [(32, 100, 32), ("32", 5, 5), ("1/4", 100, 25), ("1/4", 101, 26), ("1/8", 3, 1), ("1/1", 9, 9)],
)
def test_a_rule_says_how_many(given: int | str, tokens: int, expected: int) -> None:
    assert parse(given)(tokens) == expected


def test_capacity_is_fixed_or_what_the_longest_needs() -> None:
    assert Rule(8).capacity([3, 5]) == 8
    assert Rule(4, ratio=True).capacity([3, 9]) == 3
    assert [str(parse(x)) for x in (16, " 1/8 ")] == ["16", "1/8"]


@pytest.mark.parametrize("given", [0, -3, "2/8", "1/0", "1/", "a", "", "1/4/2", "²"])
def test_a_bad_rule_is_refused(given: int | str) -> None:
    with pytest.raises(ModelError, match="LW-3210"):
        parse(given)
    with pytest.raises(ModelError, match="LW-3210"):
        Config(latent_choices=(given,))


def test_each_choice_is_drawn_and_only_from_the_seed() -> None:
    choices = (4, 16, "1/4")
    drawn = [str(draw(choices, 32, (7, k))) for k in range(60)]
    assert drawn == [str(draw(choices, 32, (7, k))) for k in range(60)]
    assert {name: drawn.count(name) > 10 for name in set(drawn)} == {"4": True, "16": True, "1/4": True}
    assert draw((), 32, (7, 0)) == Rule(32)


def test_a_batch_has_the_latents_that_were_drawn(tiny_llm: Path, story_file: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    items = read_questions([str(story_file)])[:3]
    lengths = [len(llm.encode(i.context)) for i in items]
    plain = make_batch(items, llm.encode, [llm], LIMITS, SEED)
    assert plain.counts.tolist() == [8, 8, 8]
    assert plain.slots.tolist() == list(range(8))
    shared = make_batch(items, llm.encode, [llm], replace(LIMITS, choices=("1/4",)), SEED)
    expected = [-(-n // 4) for n in lengths]
    assert shared.counts.tolist() == expected
    assert len(shared.slots) == max(expected)
    tree = shared.trees[0]
    for row, count in zip(tree.row_index, expected, strict=True):
        # BOS, the text's own latents, then the task rows, which stand behind those of the longest text.
        assert row[: 1 + count + 2].tolist() == [-1, *range(count), max(expected), max(expected) + 1]
    # The choice decides nothing else: questions and answers are the same.
    assert torch.equal(tree.labels[tree.labels >= 0], plain.trees[0].labels[plain.trees[0].labels >= 0])
    with_text = make_batch(items, llm.encode, [llm], replace(LIMITS, choices=("1/4",)), SEED, text=True)
    assert with_text.trees[0].row_index.max() == 1


def test_counts_of_their_own_cut_each_text_as_if_it_were_alone(make: Callable[..., Config]) -> None:
    model = _started(make())
    ids, lengths, counts = torch.randint(2, 300, (3, 40)), torch.tensor([40, 21, 7]), torch.tensor([10, 6, 2])
    together = model.encode(ids, lengths, 10, counts)
    for b, (n, m) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone = model.encode(ids[b : b + 1, :n], lengths[b : b + 1], m)[0]
        torch.testing.assert_close(together[b, :m], alone, atol=2e-5, rtol=1e-4)
        assert not together[b, m:].any()
    assert span_weights(lengths, torch.arange(10), 40, counts).any(-1).sum(1).tolist() == [10, 6, 2]


def test_one_run_trains_every_choice_and_resumes(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make(latent_choices=(2, 8, "1/4"), steps=6)
    whole = Trainer(config, tmp_path / "a")
    seen = {len(whole.maker(k).batch.slots) for k in range(12)}
    assert {2, 8} < seen
    whole.train()
    Trainer(config, tmp_path / "b").train(until=3)
    again = Trainer(config, tmp_path / "b")
    again.train()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def _started(config: Config) -> LatentModel:
    model = build_model(config, CPU)
    start(model, [i.context for i in read_questions(config.data)])
    return model.eval()
