"""Where the rows of prefix tuning stand, in training and in measurements, and what they begin as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from latentwire.training.building import build_model, start
from latentwire.training.config import Config, load
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.options import LoraOptions, PrefixTuningOptions
from latentwire.training.features.prefix_tuning import OPENING
from latentwire.training.maker import Maker, TextReader
from latentwire.training.report import _of_rows

Make = Callable[..., Config]
CPU = torch.device("cpu")


def test_rows_stand_between_bos_and_the_latents(tiny_config: Make) -> None:
    config = tiny_config(features=("prefix_tuning",), prefix_tuning=PrefixTuningOptions(rows=3), bundle="seed")
    model = build_model(config, CPU)
    items = read_questions(config.data)
    start(model, [item.context for item in items])
    llm = model.llms[0]
    readers = [TextReader.of(llm)]
    work = Maker(config, items, [], readers[0], readers)(0)
    tree, capacity = work.batch.trees[0], len(work.batch.slots)
    behind = capacity + len(config.tasks) * config.task_tokens
    front = list(range(behind, behind + 3))
    assert tree.row_index[:, : 4 + capacity].tolist() == [[-1, *front, *range(capacity)]] * len(tree.ids)
    assert tree.branch[:, : 4 + capacity].eq(0).all()
    assert (work.teachers[0].row_index < behind).all()
    given = model.read(llm, model.encode(work.batch.input_ids, work.batch.lengths, capacity, work.batch.counts))
    assert list(given.front) == front
    ids = llm.encode(OPENING)
    torch.testing.assert_close(given.rows[0, behind:], llm.embedding[[ids[i % len(ids)] for i in range(3)]])
    with torch.no_grad():
        asked = {kind: measure(model.eval(), llm, items[:2], kind).positions for kind in ("latents", "none", "first")}
    assert (asked["latents"] == 3 + 8).all()
    assert (asked["none"] == 0).all()
    assert (asked["first"] == 8).all()


def test_measured_rows_belong_to_the_weights_of_the_features() -> None:
    """An evaluation that goes on must not take over rows of another LoRA."""
    found = {"checkpoint": "e", "protocol": {}}
    metas = [{"adapters": {}, "features": own} for own in ({}, {"x": {"lora": {"sha256": "1"}}})]
    metas.append({"adapters": {}, "features": {"x": {"lora": {"sha256": "2"}}}})
    facts = [_of_rows(found, meta, []) for meta in metas]
    assert facts[0] != facts[1] != facts[2]
    assert "features" not in facts[0]


def test_options_of_a_table_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('features = ["lora"]\n[lora]\nrank = 4\n', encoding="utf-8")
    assert load(path).lora == LoraOptions(rank=4)
    found = load(path, ["lora.layers=2", "prefix_tuning.rows=5"])
    assert (found.lora, found.prefix_tuning) == (LoraOptions(rank=4, layers=2), PrefixTuningOptions(5))
