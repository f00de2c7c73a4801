"""Whole runs on a tiny model: injection, gradients, exact resume, memorising, checkpoints, publishing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.core.errors import InputError, LatentError, LatentWireError, ModelError
from latentwire.core.prompt import join
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import read_meta
from latentwire.training.config import Config
from latentwire.training.curves import draw
from latentwire.training.data import Item, Question, read_questions
from latentwire.training.encoder import EncoderFromEmbedLayer
from latentwire.training.evaluate import measure, pick
from latentwire.training.evaluation.table import table
from latentwire.training.injection import Injection
from latentwire.training.llm import LMWrapper
from latentwire.training.quality import quality
from latentwire.training.report import Request, report, store
from latentwire.training.train import Trainer
from latentwire.training.tree import Branch, build

CPU = torch.device("cpu")
Make = Callable[..., Config]


def test_embeddings_in_place_of_ids_change_nothing(tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    ids = torch.tensor([[0, 40, 50, 60, 70]])
    rows = llm.embedding[ids[:, 2:4]]
    mixed = llm.splice(torch.tensor([[0, 40, 0, 0, 70]]), torch.tensor([[-1, -1, 0, 1, -1]]), rows)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    hidden = llm.hidden(mixed, mask, torch.arange(5)[None])
    expected = llm.model(ids).logits
    torch.testing.assert_close(llm.logits(hidden[0]), expected[0], atol=1e-5, rtol=1e-5)


def test_a_branch_scores_as_if_it_were_alone(make: Make) -> None:
    model = build_model(make(), CPU)
    llm = model.llms[0]
    prefix = join([[0], [30, 31, 32]])
    branches = [Branch(join([[40, 41]]), (50, 51, 1), "answer"), Branch(join([[42]]), (60, 1), "answer")]
    none = Injection(torch.zeros(1, 1, llm.width))
    together = model.score(llm, build([prefix], [branches]), none).logits
    alone = [model.score(llm, build([prefix], [[branch]]), none).logits for branch in branches]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    text = llm.model(torch.tensor([[0, 30, 31, 32, 42, 60]])).logits[0, 4:6]
    torch.testing.assert_close(alone[1], text, atol=1e-5, rtol=1e-5)


def test_generate_returns_new_tokens_only(tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    prompts = [[0, 33, 44], [0, 55, 66, 77, 88]]
    found = llm.generate([llm.embedding[torch.tensor(p)] for p in prompts], 5)
    for prompt, new in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in new:
            assert token == int(llm.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert len(new) == 5 or int(llm.model(torch.tensor([ids])).logits[0, -1].argmax()) in llm.special.eos


def test_the_start_names_a_token_of_each_span(make: Make) -> None:
    """Before any training the lookup adapter reads real words of the text out of the latents."""
    model = build_model(make(salience=20.0, d_z=32), CPU)
    texts = [i.context for i in read_questions(make().data)]
    start(model, texts)
    llm = model.llms[0]
    ids = llm.encode(texts[0])
    z = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))
    adapter = model.adapter(llm)
    rows = adapter(z)[0, :8]
    nearest = (rows[:, None] - llm.embedding[None]).norm(dim=-1).argmin(-1).tolist()
    idf = model.encoder.get_buffer("idf")
    named = 0
    encoder = model.encoder
    assert isinstance(encoder, EncoderFromEmbedLayer)
    spans = encoder.cut(torch.tensor([ids]), torch.tensor([len(ids)]), torch.arange(8)).spans[0]
    for owned, token in zip(spans, nearest, strict=True):
        span = torch.tensor(ids)[owned]
        telling = set(span[idf[span] == idf[span].max()].tolist())
        # Where two tokens are equally rare the latent stands between them, and perhaps beside a third.
        if len(telling) == 1:
            assert {token} == telling
            named += 1
    assert named >= 3


def test_every_trainable_tensor_learns(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=3), tmp_path)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    still = [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])]
    # The task rows were trained in the format stage and stand still afterwards.
    assert [n for n in still if not n.endswith("task.weight")] == []
    saved = load_file(tmp_path / "last" / "encoder.safetensors")
    assert set(saved) == set(trainer.model.encoder.state_dict())


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(make(), tmp_path / "a").train()
    Trainer(make(), tmp_path / "b").train(until=2)
    # What came after the last checkpoint is lost with the process, and is trained again.
    lost = Trainer(make(), tmp_path / "b")
    monkeypatch.setattr(lost, "save", lambda: None)
    lost.train(until=3)
    Trainer(make(), tmp_path / "b").train()
    for name in [p.name for p in (tmp_path / "a" / "last").iterdir() if p.suffix == ".safetensors"]:
        a, b = (load_file(tmp_path / run / "last" / name) for run in "ab")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert _losses(tmp_path / "a") == _losses(tmp_path / "b")
    assert draw(tmp_path / "a").stat().st_size > 10_000


def _losses(run: Path) -> dict[int, dict[str, float]]:
    """Records of the steps, the later one where a step was done twice, without times."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = {r["step"]: r for r in records if r["event"] == "step"}
    return {s: {k: v for k, v in r.items() if k not in ("time", "s", "speed")} for s, r in steps.items()}


def test_a_stopped_run_keeps_its_steps_and_its_best(make: Make, tmp_path: Path) -> None:
    Trainer(make(save_every=100), tmp_path).train(until=4)
    best = read_meta(tmp_path / "best")["best"]
    # last/ was written before step 3 was measured; a worse figure later must not replace best/.
    again = Trainer(make(save_every=100), tmp_path)
    assert again.step == 4
    assert again.best == best


def test_resume_refuses_another_config(make: Make, tmp_path: Path) -> None:
    Trainer(make(steps=2), tmp_path).train()
    with pytest.raises(ModelError, match=r"LW-3211 .*lr_new"):
        Trainer(make(steps=2, lr_new=0.5), tmp_path)


def test_it_can_memorise_eight_texts(make: Make, tmp_path: Path) -> None:
    """Overfitting proves the whole path: what reaches the LLM through the latents decides the answer."""
    rates = {"lr_new": 2e-2, "lr_copied": 1e-2, "lr_projection": 1e-2, "lr_task": 2e-2}
    config = make(steps=500, format_steps=100, prose=(), save_every=1000, eval_every=1000, mlp_hidden=128, **rates)
    trainer = Trainer(config, tmp_path)
    trainer.train()
    items = read_questions(config.data)
    llm = trainer.model.llms[0]
    read = measure(trainer.model.eval(), llm, items, "latents", max_new_tokens=12)
    other = measure(trainer.model, llm, items, "shuffled")
    assert read.nll.mean() < 0.05
    assert list(read.texts) == [q.answers[0] for item in items for q in item.questions]
    assert other.nll.mean() - read.nll.mean() > 1.0


def test_a_batch_that_is_not_finite_is_named(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(), tmp_path)
    with torch.no_grad():
        trainer.model.encoder.out.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(LatentError, match=r"LW-3001 .*step 0, micro-batch 0"):
        trainer.train()


def test_distillation_runs_beside_the_answers(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(kd_weight=0.5, steps=1), tmp_path)
    trainer.train()
    record = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"step"' in line]
    assert any(key.endswith("/kd") for r in record if r["event"] == "step" for key in r)


@pytest.mark.parametrize("kind", ["learned", "linear"])
def test_both_adapters_save_and_load(make: Make, tmp_path: Path, kind: str) -> None:
    trainer = Trainer(make(adapter_type=kind, steps=1), tmp_path)
    trainer.train()
    again, _ = open_checkpoint(tmp_path / "last", "cpu")
    items = [Item("Mira keeps 14 red goats.", (Question("How many?", ("14",)),))]
    a, b = (measure(m.eval(), m.llms[0], items, "latents").nll for m in (trainer.model, again))
    np.testing.assert_array_equal(a, b)


def test_a_last_text_alone_still_gets_the_latents_of_another(make: Make, tmp_path: Path) -> None:
    model = Trainer(make(steps=1), tmp_path).model.eval()
    items = read_questions(make().data)[:5]
    together, split = (measure(model, model.llms[0], items, "shuffled", batch=b).nll for b in (5, 4))
    np.testing.assert_allclose(together, split)
    with pytest.raises(InputError, match="LW-2104 too few held-out contexts"):
        pick(items, 1)


def test_one_llm_of_two_is_read_with_the_encoder_s_own_tokens(make: Make, tiny_llm: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-llama"
    shutil.copytree(tiny_llm, other)
    config = make(llms=(str(tiny_llm), str(other)), steps=1)
    trainer = Trainer(config, tmp_path / "run")
    trainer.train()
    model, meta = open_checkpoint(tmp_path / "run" / "last", "cpu", llms=(str(other),))
    assert [llm.name for llm in model.llms] == ["other-llama"]
    assert model.source.name == meta["encoder"]["llm"] == tiny_llm.name
    ids, lengths = torch.tensor([[5, 6, 7, 8]]), torch.tensor([4])
    torch.testing.assert_close(model.encode(ids, lengths), trainer.model.eval().encode(ids, lengths))


def test_figures_are_stored_with_the_checkpoint_they_belong_to(make: Make, story_file: Path, tmp_path: Path) -> None:
    Trainer(make(steps=1), tmp_path / "run").train()
    folder = tmp_path / "run" / "last"
    report(Request(str(folder), [story_file], 4, max_new_tokens=2, out=tmp_path / "f.json", record=True), as_json=True)
    found = json.loads((tmp_path / "f.json").read_text())
    assert read_meta(folder)["quality"] == found
    with pytest.raises(ModelError, match="LW-3101 checkpoint was replaced"):
        store(folder, {**found, "checkpoint": "0" * 64})


def test_quality_table_has_every_row(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=1), tmp_path)
    found = quality(trainer.model.eval(), trainer.held_out, max_new_tokens=3)
    figures = next(iter(found.values()))
    columns, rows = table(figures, 8)
    assert len(rows) == 5
    assert all(len(row) == len(columns) for row in rows)
    assert figures["rows"]["none"]["context_positions"] == 0
    assert figures["rows"]["latents"]["context_positions"] == 8


def _damage_truncate(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _damage_tensor(folder: Path) -> None:
    tensors = load_file(folder / "encoder.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "encoder.safetensors")


def _damage_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def _damage_llm(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    next(iter(meta["adapters"].values()))["llm_fingerprint"] = "0" * 64
    (folder / "meta.json").write_text(json.dumps(meta))


def _damage_tokenizer(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["encoder"]["llm_fingerprint"] = "0" * 64
    (folder / "meta.json").write_text(json.dumps(meta))


def _damage_pickle(folder: Path) -> None:
    (folder / "meta.json").rename(folder / "weights.pt")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_damage_truncate, 3222),
        (_damage_tensor, 3223),
        (lambda f: _damage_meta(f, version=99), 3221),
        (lambda f: _damage_meta(f, format="other"), 3220),
        (lambda f: _damage_meta(f, config=None), 3220),
        (lambda f: (f / "meta.json").write_text("{"), 3220),
        (_damage_llm, 3102),
        (_damage_tokenizer, 3101),
        (lambda f: _damage_meta(f, adapters={}), 3102),
        (_damage_pickle, 4005),
        (lambda f: (f / "encoder.safetensors").unlink(), 3204),
        (lambda f: (f / "meta.json").unlink(), 3204),
    ],
)
def test_bad_checkpoints(make: Make, tmp_path: Path, damage: Callable[[Path], object], code: int) -> None:
    Trainer(make(steps=1), tmp_path).train()
    folder = tmp_path / "last"
    read_meta(folder)
    damage(folder)
    with pytest.raises(LatentWireError) as caught:
        open_checkpoint(folder, "cpu")
    assert caught.value.code == code
    assert str(tmp_path) in str(caught.value)
