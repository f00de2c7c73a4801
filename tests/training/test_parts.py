"""Losses by hand, spans, prefix trees, batches, data errors."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.core.errors import InputError, ModelError
from latentwire.core.prompt import join
from latentwire.core.salient import PLACES, span_starts
from latentwire.training import checkpoint
from latentwire.training.config import Config, from_mapping, load
from latentwire.training.curves import read_log
from latentwire.training.data import Sampler, cloze, read_prose, read_questions
from latentwire.training.loss import AnswerWeights, cross_entropy, distillation
from latentwire.training.optim import schedule
from latentwire.training.pooling import salient_spans, span_weights
from latentwire.training.tree import IGNORE, Branch, build


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    # -log p: 3 of 4 parts for the first, 1 of 5 for the second.
    expected = (2.5 * -math.log(0.75) + 1.0 * -math.log(0.2)) / 3.5
    found = cross_entropy(logits, torch.tensor([1, 1]), torch.tensor([2.5, 1.0]))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_answer_weights() -> None:
    weights = AnswerWeights(k=2, k_token=2.0, first_token=0.5)(torch.tensor([0, 1, 2, 7]))
    assert weights.tolist() == [2.5, 2.0, 1.0, 1.0]


def test_distillation_by_hand() -> None:
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-7)


def test_spans_cover_each_token_once() -> None:
    lengths = torch.tensor([11, 3, 32, 0])
    spans = span_weights(lengths, torch.arange(4), 32)
    for row, length in zip(spans, lengths.tolist(), strict=True):
        used = min(4, length)
        assert row.sum(0).tolist() == [1] * length + [0] * (32 - length)
        sizes = row.sum(1).tolist()
        assert all(size >= 1 for size in sizes[:used])
        assert not any(sizes[used:])
        assert length < 4 or max(sizes) - min(sizes) <= 1


def test_salient_spans_by_hand() -> None:
    salience = torch.tensor([[0.0, 5.0, 1.0, 0.0, 7.0, 0.0, 0.0], [2.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0]])
    spans = salient_spans(salience, torch.tensor([7, 3]), torch.arange(3))
    # The first text ends its spans at its two rarest states and at its last one; the second has as many as latents.
    assert spans[0].int().tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert spans[1].int().tolist() == [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]
    fewer = salient_spans(salience, torch.tensor([7, 3]), torch.arange(3), torch.tensor([2, 1]))
    assert fewer.sum(-1).tolist() == [[5, 2, 0], [3, 0, 0]]
    assert not salient_spans(salience, torch.tensor([0, 0]), torch.arange(3)).any()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_salient_spans_are_whole_in_order_and_of_the_batch_independent(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, size), min_size=1, max_size=4)))
    latents = data.draw(st.integers(1, 40))
    rare = st.lists(st.sampled_from([0.0, 0.1, 0.5, 3.0, 9.7, 1e6]), min_size=size, max_size=size)
    salience = torch.tensor([data.draw(rare) for _ in lengths])
    spans = salient_spans(salience, lengths, torch.arange(latents))
    for row, length, own in zip(spans, lengths.tolist(), salience, strict=True):
        assert row.sum(0).tolist() == [1] * length + [0] * (size - length)
        assert [bool(slot.any()) for slot in row] == [i < min(latents, length) for i in range(latents)]
        owner = row[:, :length].int().argmax(0).tolist()
        assert owner == sorted(owner)
        if length:
            assert [owner.index(i) for i in sorted(set(owner))] == span_starts(
                own[:length].numpy(), min(latents, length)
            )
        alone = salient_spans(own[None, : max(length, 1)], torch.tensor([length]), torch.arange(latents))[0]
        assert torch.equal(alone, row[:, : max(length, 1)])


def test_where_nothing_is_salient_spans_are_nearly_equal() -> None:
    """Text in a language that the table knows nothing of."""
    for length in (33, 100, 512, 4000, PLACES):
        spans = salient_spans(torch.zeros(1, length), torch.tensor([length]), torch.arange(32))[0]
        sizes = spans.sum(-1)
        assert sizes.sum() == length
        assert sizes.min() >= 1, length
        assert sizes.max() <= 1 + 3 * length / 32, length


def test_tree_places_branches_behind_the_prefix() -> None:
    first = Branch(join([range(4, 6), [7]]), (8, 9), "answer")
    second = Branch(join([[5]]), (6,), "answer")
    tree = build([join([[1], range(2)])], [[first, second]])
    assert tree.ids.tolist() == [[1, 0, 0, 0, 0, 7, 8, 5]]
    assert tree.row_index.tolist() == [[-1, 0, 1, 4, 5, -1, -1, -1]]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3]]
    assert tree.branch.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
    assert tree.labels.tolist() == [[IGNORE] * 5 + [8, 9, 6]]
    assert tree.rank.tolist() == [[0] * 6 + [1, 0]]
    mask = tree.mask()[0, 0]
    assert mask[7].tolist() == [True] * 3 + [False] * 4 + [True]
    assert mask[6].tolist() == [True] * 7 + [False]


def test_schedule_depends_on_steps_only() -> None:
    config = Config(steps=100, warmup=0.1, lr_floor=0.1)
    values = [schedule(step, config) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(values[10:]))


def test_sampler_is_a_function_of_seed_and_number() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 300).tolist()
    forward = [Sampler(lengths, 8, seed=5)(k) for k in range(80)]
    assert [Sampler(lengths, 8, seed=5)(k) for k in (79, 3, 41)] == [forward[79], forward[3], forward[41]]
    epoch = [i for batch in forward[: 300 // 8] for i in batch]
    assert len(set(epoch)) == len(epoch) == 296
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in forward[:37]]
    assert np.median(spread) < 60


def test_cloze_blanks_something_that_stands_there() -> None:
    text = "The old mill was bought by Clara Weston in 1934. She repaired the wheel before Christmas."
    found = cloze(text, np.random.default_rng(1), 2)
    assert len(found) == 2
    for question in found:
        sentence = question.text.removeprefix("Fill in the blank: ")
        assert sentence.replace("____", question.answers[0]) in text


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"context": "", "question": "q", "answers": ["a"]}', "context or question"),
        ('{"context": "c", "question": "q", "answers": []}', "answers missing"),
        ('{"context": "c", "question": "q", "answers": ["z"]}', "no answer stands"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_bad_questions_name_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    good = '{"context": "c", "question": "q", "answers": ["c"]}\n'
    (tmp_path / "q.jsonl").write_text(good + line + "\n")
    with pytest.raises(InputError) as caught:
        read_questions([str(tmp_path / "q.jsonl")])
    assert caught.value.code == 2107
    assert what in str(caught.value)
    assert "q.jsonl:2" in str(caught.value)


def test_damaged_data_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = gzip.compress(b'{"context": "c", "question": "q", "answers": ["c"]}\n' * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "plain.jsonl.gz").write_bytes(b"{}")
    (tmp_path / "latin.jsonl").write_bytes(b'{"context": "\xe9"}')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    for name, code in (("cut.jsonl.gz", 2103), ("plain.jsonl.gz", 2103), ("latin.jsonl", 2107)):
        with pytest.raises(InputError, match=f"LW-{code} .*{name}"):
            read_questions([str(tmp_path / name)])
    with pytest.raises(InputError, match="LW-2102"):
        read_prose([str(tmp_path / "bad.parquet")])
    pq.write_table(pa.table({"text": ["a", None, " "]}), tmp_path / "holes.parquet")
    assert [item.context for item in read_prose([str(tmp_path / "holes.parquet")])] == ["a"]


def test_a_log_cut_short_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st{"event": "step", "step": 2}\n')
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1]


def test_missing_data_is_named(tmp_path: Path) -> None:
    for read in (read_questions, read_prose):
        with pytest.raises(InputError, match=r"LW-2104 .*nowhere"):
            read([str(tmp_path / "nowhere.jsonl")])


def test_prose_without_text_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="LW-2101"):
        read_prose([str(tmp_path / "p.parquet")])


@pytest.mark.parametrize(
    "values",
    [
        {"latents": 3},
        {"steps": "many"},
        {"encoder_type": "rnn"},
        {"batch": 6, "micro_batch": 4},
        {"warmup": 2},
        {"llms": []},
        {"save_every": 0},
        {"kd_tau": 0},
        {"tasks": ["reconstruct"]},
        {"tasks": []},
        {"bundle": "latent"},
        {"bundle": "everything"},
        {"patience": -1},
        {"tasks": "answer"},
        {"span_type": "even"},
        {"max_tokens": 16385},
        {"encoder_type": "bytes", "teacher": "t", "byte_lexicon": 0},
        {"llms": [1]},
        {"steps": True},
    ],
)
def test_bad_options(values: dict[str, object]) -> None:
    with pytest.raises(ModelError) as caught:
        from_mapping(values, "run.toml")
    assert caught.value.code == 3210


def test_the_longest_text_of_bytes_depends_on_what_it_is_cut_at() -> None:
    own = {"encoder_type": "bytes", "teacher": "t", "bundle": "follow", "span_type": "learned", "max_tokens": PLACES}
    assert from_mapping(own, "run.toml").max_tokens == PLACES
    with pytest.raises(ModelError, match=rf"max_tokens.*at most {PLACES} where span_type is learned"):
        from_mapping({**own, "max_tokens": PLACES + 1}, "run.toml")
    states = {**own, "bundle": "default", "span_type": "salient", "max_tokens": 4 * PLACES}
    assert from_mapping(states, "run.toml").max_tokens == 4 * PLACES
    with pytest.raises(ModelError, match=rf"at most {4 * PLACES} where span_type is salient"):
        from_mapping({**states, "max_tokens": 4 * PLACES + 1}, "run.toml")


def test_config_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("steps = 7\nlr_new = 1\n")
    config = load(tmp_path / "run.toml", ["seed=4", "precision=fp32", 'llms=["a", "b"]'])
    assert (config.steps, config.lr_new, config.seed, config.precision, config.llms) == (7, 1.0, 4, "fp32", ("a", "b"))
    assert from_mapping(config.to_json(), "again") == config
    (tmp_path / "run.toml").write_text("steps = = 7")
    with pytest.raises(ModelError, match="LW-3210"):
        load(tmp_path / "run.toml")
    with pytest.raises(ModelError, match="LW-3204"):
        load(tmp_path / "none.toml")


def test_a_checkpoint_from_before_an_option_opens_with_what_was_done_then() -> None:
    stored = Config(steps=7, encoder_type="bytes", teacher="t").to_json()
    del stored["byte_lexicon"], stored["span_type"]
    config = checkpoint.config_of({"config": stored}, "meta.json")
    assert (config.steps, config.byte_lexicon, config.span_type) == (7, 0, "equal")
    stored["encoder_type"] = "embed_layer"
    assert checkpoint.config_of({"config": stored}, "meta.json") == Config(steps=7, teacher="t", span_type="equal")
    with pytest.raises(ModelError, match=r"LW-3210 .*from_the_future"):
        checkpoint.config_of({"config": {**stored, "from_the_future": 1}}, "meta.json")


def test_the_shipped_reference_keeps_its_two_tasks() -> None:
    folder = Path(checkpoint.__file__).parent.parent / "reference"
    config = checkpoint.config_of(checkpoint.read_meta(folder), str(folder))
    assert config.tasks == ("answer", "reconstruct")
