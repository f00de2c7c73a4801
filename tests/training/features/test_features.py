"""What every feature must do, each on a tiny Llama and a tiny Gemma: one table of cases, one test for each duty.

A new feature adds a line to ``CASES``; what only it can do is tested in a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.core.prompt import join
from latentwire.training.building import build_model, open_checkpoint, parameters, start
from latentwire.training.checkpoint import feature_file, read_meta, save
from latentwire.training.config import Config, from_mapping, load
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.options import (
    KINDS,
    CoprocessorOptions,
    DeepPrefixOptions,
    LatentAdaptersOptions,
    LoraOptions,
    PrefixTuningOptions,
)
from latentwire.training.llm import KeyValues, LMWrapper
from latentwire.training.model import LatentModel
from latentwire.training.objective import Objective
from latentwire.training.runfolder import to_toml
from latentwire.training.train import Trainer
from latentwire.training.tree import Branch, Tree, build

Make = Callable[..., Config]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """How a feature is tested.

    Attributes:
        kind: its name.
        neutral: a new one changes logits by at most this; None: it cannot start without any effect.
        options: of the config.
    """

    kind: str
    neutral: float | None
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("lora", 0.0, {"lora": LoraOptions(rank=2)}),
    Case("prefix_tuning", None, {"prefix_tuning": PrefixTuningOptions(rows=3)}),
    Case("deep_prefix", None, {"deep_prefix": DeepPrefixOptions(rank=4, groups=2)}),
    Case("coprocessor", 2e-5, {"coprocessor": CoprocessorOptions(rank=4)}),
    Case("latent_adapters", 0.0, {"latent_adapters": LatentAdaptersOptions(rank=4, heads=2, layers=(0, 1))}),
]
FAMILIES = ["tiny_llm", "tiny_gemma"]


@pytest.fixture(params=CASES, ids=lambda case: case.kind)
def case(request: pytest.FixtureRequest) -> Case:
    """One feature."""
    found: Case = request.param
    return found


@pytest.fixture
def with_feature(tiny_config: Make, case: Case) -> Make:
    """``with_feature(**changes)``: a run of seconds with the feature on."""
    return lambda **changes: tiny_config(**{"features": (case.kind,), **case.options, **changes})


def _model(config: Config) -> LatentModel:
    model = build_model(config, CPU)
    start(model, [item.context for item in read_questions(config.data)])
    return model.eval()


def _moved(model: LatentModel) -> LatentModel:
    """Every parameter of the features off its start: what a feature does is seen only then."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.features.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _logits(model: LatentModel, config: Config, cache: KeyValues | None = None) -> torch.Tensor:
    """Of two questions behind the latents of two stories."""
    llm = model.llms[0]
    item = [model.ids(i.context) for i in read_questions(config.data)[:2]]
    size = max(map(len, item))
    ids = torch.tensor([row + [0] * (size - len(row)) for row in item])
    given = model.read(llm, model.encode(ids, torch.tensor([len(row) for row in item])))
    return model.score(llm, _tree(llm, given.front), given, cache).logits


def _tree(llm: LMWrapper, front: range = range(0), latents: int = 8) -> Tree:
    """Without latents: plain text stands where they would."""
    prefix = join([llm.special.bos, front, range(latents) if latents else [33, 34]])
    task = range(latents, latents + 2)
    branch = Branch(join([task, [40, 41]]), (50, 51, 52), "answer")
    other = Branch(join([task, [43]]), (60, 61), "answer")
    return build([prefix, prefix], [[branch, other], [branch]])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_without_effect_and_learns(
    with_feature: Make, tiny_config: Make, case: Case, family: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(family))
    config = with_feature(llms=(folder,))
    model = _model(config)
    apart = 0.0
    if case.neutral is not None:
        with torch.no_grad():
            plain = tiny_config(llms=(folder,))
            apart = float((_logits(model, config) - _logits(_model(plain), plain)).abs().max())
        print(f"{case.kind}, {family}: logits {apart:.2e} from those without it, at most {case.neutral:g}")
        assert apart <= case.neutral
    (feature,) = model.features_of(model.llms[0]).values()
    _logits(model, config).square().mean().backward()
    gradients = [p.grad for p in feature.parameters()]
    assert any(g is not None and float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_acts_where_latents_stand_and_nowhere_else(
    with_feature: Make, tiny_config: Make, family: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(family))
    config, plain = with_feature(llms=(folder,)), tiny_config(llms=(folder,))
    model, untouched = _moved(_model(config)), _model(plain)
    with torch.no_grad():
        assert not torch.allclose(_logits(model, config), _logits(untouched, plain), atol=1e-3)
        llm = model.llms[0]
        before = {name: value.clone() for name, value in untouched.llms[0].model.state_dict().items()}
        _logits(model, config)
        after = llm.model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        text = [m.score(m.llms[0], _tree(llm, latents=0), m.task_rows(m.llms[0], 2)).logits for m in (model, untouched)]
    torch.testing.assert_close(text[0], text[1], rtol=0, atol=0)


def test_it_acts_on_generated_tokens_too(with_feature: Make) -> None:
    """Greedy answers from the cache are those of scoring each token anew."""
    config = with_feature()
    model = _moved(_model(config))
    items = read_questions(config.data)[:3]
    llm = model.llms[0]
    answers = measure(model, llm, items, "latents", max_new_tokens=4)
    with torch.no_grad():
        for item, text in zip(items, answers.texts, strict=True):
            ids = _grown(model, llm, item.context, item.questions[0].text, 4)
            kept = next((ids[:n] for n, token in enumerate(ids) if token in llm.special.eos), ids)
            assert llm.tokenizer.decode(kept).split("\n")[0].strip() == text


def _grown(model: LatentModel, llm: LMWrapper, text: str, question: str, count: int) -> list[int]:
    """Greedy tokens, each from a pass over everything before it."""
    from latentwire.core.prompt import question_ids

    own = model.ids(text)
    given = model.read(llm, model.encode(torch.tensor([own]), torch.tensor([len(own)])))
    out: list[int] = []
    while len(out) < count:
        behind = join([range(8, 10), [*question_ids(llm.encode, question), *out]])
        tree = build([join([llm.special.bos, given.front, range(8)])], [[Branch(behind, (0,), "answer")]])
        out.append(int(model.score(llm, tree, given).logits[-1].argmax()))
    return out


def test_it_trains_saves_loads_and_measures_the_same(with_feature: Make, case: Case, tmp_path: Path) -> None:
    config = with_feature(steps=2, bundle="seed")
    trainer = Trainer(config, tmp_path / "run")
    feature = trainer.model.features_of(trainer.model.llms[0])[case.kind]
    before = [p.detach().clone() for p in feature.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, feature.parameters(), strict=True))
    items = read_questions(config.data)[:4]
    live = measure(trainer.model.eval(), trainer.model.llms[0], items, "latents")
    model, meta = open_checkpoint(tmp_path / "run" / "last", "cpu")
    opened = measure(model, model.llms[0], items, "latents")
    np.testing.assert_array_equal(live.nll, opened.nll)
    about = meta["features"][model.llms[0].name][case.kind]
    assert about["tensors"] == len(feature.state_dict()) > 0
    assert parameters(model)[f"{case.kind}/{model.llms[0].name}"] == sum(p.numel() for p in feature.parameters())


def test_a_run_resumes_bit_for_bit(with_feature: Make, tmp_path: Path) -> None:
    config = with_feature(steps=4, save_every=2, eval_every=4)
    Trainer(config, tmp_path / "whole").train()
    Trainer(config, tmp_path / "halves").train(until=2)
    Trainer(config, tmp_path / "halves").train()
    ends = [read_meta(tmp_path / name / "last") for name in ("whole", "halves")]
    assert ends[0]["features"] == ends[1]["features"]
    assert ends[0]["encoder"] == ends[1]["encoder"]
    assert ends[0]["adapters"] == ends[1]["adapters"]


@pytest.fixture
def saved(with_feature: Make, tmp_path: Path) -> Path:
    """A checkpoint with the feature."""
    save(tmp_path / "saved", _model(with_feature()))
    return tmp_path / "saved"


def _refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder, "cpu")
    assert caught.value.code == 3224
    return str(caught.value)


def test_a_checkpoint_without_its_weights_is_refused(saved: Path, case: Case) -> None:
    (name,) = read_meta(saved)["features"]
    path = saved / feature_file(case.kind, name)
    weights = path.read_bytes()
    path.unlink()
    assert path.name in _refused(saved)
    path.write_bytes(weights[:-1])
    assert "damaged" in _refused(saved)
    flipped = bytearray(weights)
    flipped[-3] ^= 4
    path.write_bytes(flipped)
    assert "damaged" in _refused(saved)
    path.write_bytes(weights)
    meta = json.loads((saved / "meta.json").read_text())
    meta["features"][name][case.kind]["tensors"] += 1
    (saved / "meta.json").write_text(json.dumps(meta))
    assert "number of tensors" in _refused(saved)
    del meta["features"]
    (saved / "meta.json").write_text(json.dumps(meta))
    assert "named in meta.json" in _refused(saved)


def test_init_takes_it_over_or_begins_it(saved: Path, with_feature: Make, tiny_config: Make, tmp_path: Path) -> None:
    moved = _moved(_model(with_feature()))
    save(tmp_path / "moved", moved)
    went_on = Trainer(with_feature(init=str(tmp_path / "moved")), tmp_path / "on").model
    for own, theirs in zip(went_on.features.parameters(), moved.features.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)
    plain = _model(tiny_config())
    save(tmp_path / "plain", plain)
    begun = Trainer(with_feature(init=str(tmp_path / "plain")), tmp_path / "begun").model
    fresh = _model(with_feature())
    for own, theirs in zip(begun.features.parameters(), fresh.features.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)


def test_only_its_stage_moves_it(with_feature: Make, tmp_path: Path) -> None:
    stages = (
        {"name": "still", "steps": 1, "train": ["adapters"]},
        {"name": "alone", "steps": 1, "train": ["features"]},
    )
    plain = with_feature(steps=2).to_json()
    config = from_mapping({**plain, "stage": list(stages)}, "test")
    trainer = Trainer(config, tmp_path)
    model = trainer.model
    begun = [p.detach().clone() for p in model.features.parameters()]
    trainer.train(until=1)
    assert all(torch.equal(a, b) for a, b in zip(begun, model.features.parameters(), strict=True))
    others = [p.detach().clone() for p in (*model.encoder.parameters(), *model.adapters.parameters())]
    trainer.train()
    assert not all(torch.equal(a, b) for a, b in zip(begun, model.features.parameters(), strict=True))
    now = (*model.encoder.parameters(), *model.adapters.parameters())
    assert all(torch.equal(a, b) for a, b in zip(others, now, strict=True))


def test_the_teacher_reads_without_it(with_feature: Make, tiny_config: Make) -> None:
    """Distillation to a teacher that the feature changes would teach the feature to itself."""
    config = with_feature(bundle="seed")
    model = _moved(_model(config))
    calls: list[bool] = []
    (feature,) = model.features_of(model.llms[0]).values()
    hidden = model.llms[0].hidden
    active: list[int] = []
    plain_active = feature.active

    from contextlib import contextmanager

    @contextmanager
    def noted(latents: torch.Tensor) -> Any:
        active.append(1)
        with plain_active(latents):
            yield
        active.pop()

    def seen(*args: Any, **more: Any) -> torch.Tensor:
        calls.append(bool(active))
        out: torch.Tensor = hidden(*args, **more)
        return out

    feature.active = noted  # type: ignore[method-assign]
    model.llms[0].hidden = seen  # type: ignore[method-assign]
    from latentwire.training.maker import Maker, TextReader

    items = read_questions(config.data)
    readers = [TextReader.of(llm) for llm in model.llms]
    work = Maker(config, items, [], readers[0], readers)(0)
    Objective.named(config, "seed")(model, work.batch, work.teachers)
    assert calls == [True] * (len(calls) - 1) + [False]


def test_options_survive_the_folder_of_a_run(with_feature: Make, case: Case, tmp_path: Path) -> None:
    config = with_feature()
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(path) == config
    assert load(path, ["features=[]"]).features == ()


def test_every_feature_is_tested_here() -> None:
    assert sorted(KINDS) == sorted(case.kind for case in CASES)


def test_impossible_features_are_refused(tiny_config: Make) -> None:
    for changes, words in (
        ({"features": ("loora",)}, "prefix_tuning"),
        ({"features": ("prefix_tuning", "prefix_tuning")}, "once"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            tiny_config(**changes)
        assert caught.value.code == 3210
    for table, name, value in (
        ("prefix_tuning", "rows", 0),
        ("lora", "rank", 0),
        ("lora", "alpha", 0),
        ("lora", "layers", -1),
        ("lora", "targets", []),
        ("lora", "targets", ["lm_head"]),
        ("lora", "targets", ["q_proj", "q_proj"]),
    ):
        with pytest.raises(ModelError, match=rf"{table}\.{name}") as caught:
            from_mapping({table: {name: value}}, "test")
        assert caught.value.code == 3210
    with pytest.raises(ModelError, match="unknown training option row") as caught:
        from_mapping({"prefix_tuning": {"row": 1}}, "test")
    assert caught.value.code == 3210
