"""Keys and values in the cache: a tree of questions reads them exactly as each question would alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from latentwire.core.errors import ModelError
from latentwire.core.prompt import join, question_ids
from latentwire.training.augment import read_before, read_onto
from latentwire.training.config import Config
from latentwire.training.features.coprocessor import Coprocessor
from latentwire.training.features.deep_prefix import DeepPrefix
from latentwire.training.features.observed import QUESTION, observe, quiet_keys
from latentwire.training.features.options import CoprocessorOptions, DeepPrefixOptions
from latentwire.training.features.slots import Slots
from latentwire.training.llm import KeyValues, LMWrapper
from latentwire.training.tree import Branch, Tree, build

Make = Callable[..., Config]
FAMILIES = ["tiny_llm", "tiny_gemma", "sliding"]


@pytest.fixture(params=FAMILIES)
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> LMWrapper:
    """A tiny LLM; ``sliding`` is the Gemma with one layer that reads five positions back."""
    folder = request.getfixturevalue("tiny_gemma" if request.param == "sliding" else request.param)
    if request.param == "sliding":
        shutil.copytree(folder, tmp_path / "sliding")
        folder = tmp_path / "sliding"
        config = json.loads((folder / "config.json").read_text())
        config |= {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
        (folder / "config.json").write_text(json.dumps(config))
    return LMWrapper(str(folder), torch.float32, torch.device("cpu"))


def _tree() -> Tree:
    """Contexts of 4 and 6 positions, latents in rows 0..; two questions and one."""
    first, second = join([(2,), range(3)]), join([(2,), (44, 45), range(3)])
    one, two = Branch(join([(40, 41)]), (50, 51, 52), "answer"), Branch(join([(43,)]), (60, 61), "answer")
    return build([first, second], [[one, two], [two]])


def _slots(llm: LMWrapper, onto: bool) -> Slots:
    config = llm.model.config
    generator = torch.Generator().manual_seed(0)
    shape = (2, config.num_hidden_layers, config.num_key_value_heads, 3, llm.model.model.layers[0].self_attn.head_dim)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    return Slots(keys, values, torch.tensor([3, 2]), onto)


def _alone(llm: LMWrapper, tree: Tree, embeds: torch.Tensor, slots: Slots, row: int, branch: int) -> torch.Tensor:
    """States of one question, token for token through transformers' own attention: no tree, no mask, no batch."""
    cache = DynamicCache()
    model, count = llm.model.model, int(slots.counts[row])
    columns = (tree.branch[row] == 0) | (tree.branch[row] == branch)
    own = embeds[row][columns][None]
    size, context = own.shape[1], int((tree.branch[row] == 0).sum())
    latents = tree.row_index[row][columns][:context] >= 0
    out = []
    for at in range(size):
        if not slots.onto and at == 1:
            _put(llm, cache, slots, row, count)
        if slots.onto and at == context:
            _add(llm, cache, slots, row, latents.nonzero()[:, 0])
        place = at + (count if at and not slots.onto else 0)
        states = model(inputs_embeds=own[:, at : at + 1], position_ids=torch.tensor([[place]]), past_key_values=cache)
        out.append(states.last_hidden_state[0, 0])
    return torch.stack(out[context:])


def _put(llm: LMWrapper, cache: DynamicCache, slots: Slots, row: int, count: int) -> None:
    keys = llm.rotary(slots.keys[row : row + 1, :, :, :count], torch.arange(1, 1 + count))
    for number in range(keys.shape[1]):
        cache.update(keys[:, number], slots.values[row : row + 1, number, :, :count], number)


def _layers(cache: DynamicCache) -> list[Any]:
    """Its layers, which hold ``keys`` and ``values`` once they were written to."""
    return list(cache.layers)


def _add(llm: LMWrapper, cache: DynamicCache, slots: Slots, row: int, places: torch.Tensor) -> None:
    keys = llm.rotary(slots.keys[row : row + 1], places)
    for number, layer in enumerate(_layers(cache)):
        layer.keys[:, :, places] += keys[:, number]
        layer.values[:, :, places] += slots.values[row : row + 1, number]


@pytest.mark.parametrize("onto", [False, True], ids=["before", "onto"])
@torch.no_grad()
def test_a_tree_reads_slots_as_each_question_does_alone(llm: LMWrapper, onto: bool) -> None:
    if onto is False and llm.model.config.model_type == "gemma3_text" and llm.model.config.sliding_window == 5:
        pytest.skip("a window counts positions, transformers' cache counts slots: the same only where none is missing")
    tree, slots = _tree(), _slots(llm, onto)
    rows = torch.randn(2, 3, llm.width, generator=torch.Generator().manual_seed(1)) * 0.3
    embeds = llm.splice(tree.ids, tree.row_index, rows)
    cache = KeyValues()
    states = (read_onto if onto else read_before)(llm, tree, embeds, slots, cache)
    for row, branches in enumerate(((1, 2), (1,))):
        for branch in branches:
            have = states[row][tree.branch[row] == branch]
            want = _alone(llm, tree, embeds, slots, row, branch)
            torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)
    # Whoever generates goes on where the tree ended: the cache holds it column for column.
    held = _layers(cache.store)[0].keys
    assert held.shape[2] == tree.ids.shape[1] + (0 if onto else 3)


def test_groups_of_layers_read_different_latents(tiny_config: Make, tiny_llm: Path) -> None:
    config = tiny_config(deep_prefix=DeepPrefixOptions(rank=16, groups=2))
    llm = LMWrapper(str(tiny_llm), torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    feature = DeepPrefix(config, llm)
    with torch.no_grad():
        feature.head.gate.fill_(1.0)
        z = torch.randn(1, 6, config.d_z)
        z[:, 5] = 0  # five latents: three slots, the last of which has one
        slots, changed = feature.prefix(z), feature.prefix(z + torch.eye(6)[2][None, :, None])
        assert slots.counts.tolist() == [3]
        assert slots.keys.shape[1:4] == (2, 2, 3)
        moved = (slots.keys != changed.keys).any(-1).any(2)[0]
        # Latent 2 is the first of slot 1: only the lower of two groups reads it.
        assert moved.tolist() == [[False, True, False], [False, False, False]]
        last = feature.head(z[:, 4:5])
        torch.testing.assert_close(slots.values[:, 1, :, 2], last[1][:, 1, :, 0])


def test_a_new_coprocessor_gives_zeros_and_a_new_deep_prefix_no_values(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, torch.device("cpu"))
    z = torch.randn(1, 4, tiny_config().d_z)
    added, own = Coprocessor(tiny_config(), llm).prefix(z), DeepPrefix(tiny_config(), llm).prefix(z)
    assert not added.keys.any()
    assert not added.values.any()
    assert not own.values.any()
    assert own.keys.any()


@pytest.mark.parametrize("options", [{"rank": 0}, {"groups": 0}, {"quiet": -1.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*deep_prefix"):
        DeepPrefixOptions(**options)  # type: ignore[arg-type]
    if "rank" in options:
        with pytest.raises(ModelError, match=r"LW-3210 .*coprocessor"):
            CoprocessorOptions(rank=0)


def test_positions_count_the_slots(tiny_config: Make, tiny_llm: Path, story_file: Path) -> None:
    from latentwire.training.building import build_model, start
    from latentwire.training.data import read_questions
    from latentwire.training.evaluate import measure

    items = read_questions([str(story_file)])[:2]
    found = {}
    for kind in ("", "deep_prefix", "coprocessor"):
        config = tiny_config(features=(kind,) if kind else (), deep_prefix=DeepPrefixOptions(rank=2, groups=3))
        model = build_model(config, torch.device("cpu"))
        start(model, [item.context for item in items])
        found[kind] = measure(model.eval(), model.llms[0], items, "latents").positions.tolist()
    assert found[""] == found["coprocessor"] == [8, 8]
    assert found["deep_prefix"] == [11, 11]


def test_one_or_the_other(tiny_config: Make) -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*not both"):
        tiny_config(features=("deep_prefix", "coprocessor"))


@torch.no_grad()
def test_keys_are_turned_as_the_llm_turns_its_own(llm: LMWrapper, tiny_config: Make) -> None:
    """Against what transformers put into its cache: every layer, both rotations of Gemma, keys behind their norm."""
    config = tiny_config()
    own = observe(config, llm)
    ids = [*llm.special.bos, *llm.encode(config.anchor_text), *question_ids(llm.encode, QUESTION)]
    cache = DynamicCache()
    llm.model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    begun = len(llm.special.bos)
    keys = torch.stack([layer.keys.transpose(0, 1) for layer in own])[None]
    turned = llm.rotary(keys, torch.arange(begun, len(ids)))
    for number, layer in enumerate(_layers(cache)):
        torch.testing.assert_close(turned[:, number], layer.keys[:, :, begun:], atol=1e-5, rtol=1e-4)
        alone = llm.rotary.one(number)(keys[:, number : number + 1], torch.arange(begun, len(ids)))
        torch.testing.assert_close(alone[:, 0], turned[:, number], rtol=0, atol=0)
        torch.testing.assert_close(own[number].values.transpose(0, 1)[None], layer.values[:, :, begun:])


def test_a_quiet_key_is_quiet_where_queries_have_something_in_common(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, torch.device("cpu"))
    observed = observe(tiny_config(), llm)
    shared = torch.zeros(8)
    shared[[3, 7]] = 4.0  # the slowest pair of a head turns least
    alike = [replace(layer, queries=layer.queries * 0.05 + shared) for layer in observed]
    quiet = quiet_keys(alike, llm.rotary)
    for number, layer in enumerate(alike):
        for distance in (1, 20, 200):
            seen = llm.rotary.one(number)(layer.queries.transpose(0, 1)[None, None], torch.full((1,), distance))[0, 0]
            score = (seen.unflatten(0, (2, 2)) * quiet[number][:, None, None]).sum(-1) * layer.scale
            assert abs(float(score.mean()) + 1) < 0.2
            assert float(score.max()) < -0.5
