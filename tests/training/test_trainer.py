"""The loop around the loss: stages, workers, early stop, guards, the run folder, starting from another run."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentwire.core.errors import LatentError, ModelError
from latentwire.core.locks import exclusive
from latentwire.training import speed
from latentwire.training.batch import Limits, make_batch
from latentwire.training.checkpoint import read_meta
from latentwire.training.config import TASKS, Config, from_mapping, load
from latentwire.training.data import Item
from latentwire.training.injection import Injection
from latentwire.training.maker import TextReader
from latentwire.training.objective import Objective
from latentwire.training.optim import load_moments, moments
from latentwire.training.parallel import Peers
from latentwire.training.pipeline import pick_workers, stream
from latentwire.training.runfolder import RunFolder, to_toml
from latentwire.training.speed import Flops, Meter
from latentwire.training.stages import Stage
from latentwire.training.train import Trainer

CPU = torch.device("cpu")
Make = Callable[..., Config]


def records(run: Path, event: str) -> list[dict[str, Any]]:
    """Records of one kind of the log."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [r for r in found if r["event"] == event]


def losses(run: Path) -> dict[int, dict[str, Any]]:
    """Records of the steps, the later one where a step was done twice, without times."""
    return {r["step"]: {k: v for k, v in r.items() if k not in ("time", "s", "speed")} for r in records(run, "step")}


def test_batches_are_the_same_with_any_number_of_workers(make: Make, tmp_path: Path) -> None:
    maker = Trainer(make(bundle="seed", latent_choices=(4, "1/4")), tmp_path).maker
    numbers = [0, 1, 2, 5, 9, 11]
    alone, helped = (list(stream(maker, numbers, workers, CPU)) for workers in (0, 2))
    assert [w.number for w in helped] == numbers
    for a, b in zip(alone, helped, strict=True):
        assert a.origin == b.origin
        assert len(a.teachers) == 1
        for one, other in ((a.batch, b.batch), (a.batch.trees[0], b.batch.trees[0]), (a.teachers[0], b.teachers[0])):
            for name in one.__dataclass_fields__:
                if isinstance(value := getattr(one, name), torch.Tensor):
                    assert torch.equal(value, getattr(other, name)), name
    assert pick_workers(-1, CPU) == 0
    assert pick_workers(3, CPU) == 3
    assert 0 <= pick_workers(-1, torch.device("cuda")) <= max(0, len(os.sched_getaffinity(0)) - 2)


def test_a_run_through_stages_resumes_bit_for_bit(make: Make, tmp_path: Path) -> None:
    stages = (
        Stage("warm", steps=2, bundle="pretrain", prose_share=1.0, crops=(16, 24), train=("adapters", "task")),
        Stage("mix", steps=2, bundle="seed", prose_share=0.0, latent_choices=(4,), lr=0.5),
        Stage("wire", steps=2, bundle="answer", lr_copied=0.0, lr_new=0.0, lr_projection=0.0),
    )
    config = make(stage=stages, teacher_top=16)
    whole = Trainer(config, tmp_path / "a")
    weights = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    whole.train(until=2)
    moved = {n.split(".")[0] for n, p in whole.model.named_parameters() if not torch.equal(p, weights[n])}
    assert moved == {"adapters"}
    assert any(n.endswith("task.weight") and not torch.equal(p, weights[n]) for n, p in whole.model.named_parameters())
    whole.train(until=4)
    weights = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    whole.train()
    # Every rate of the last stage is 0.
    assert all(torch.equal(p, weights[n]) for n, p in whole.model.named_parameters())

    Trainer(config, tmp_path / "b").train(until=3)
    Trainer(config, tmp_path / "b").train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    found = losses(tmp_path / "a")
    assert [found[step]["stage"] for step in range(1, 7)] == ["warm", "warm", "mix", "mix", "wire", "wire"]
    terms = [{k.split("/")[1] for k in found[step] if "/" in k} for step in (1, 3)]
    assert terms[0] <= {"reconstruct", "cloze"}
    assert terms[1] == {"k_token", "first_token", "kd", "prefix_kd"}
    assert len(whole.maker(5).batch.slots) == 4
    assert all(kind == "prose" for kind, _ in whole.maker(1).origin)
    assert all(kind == "questions" for kind, _ in whole.maker(6).origin)


def test_the_streams_of_a_run_are_used_evenly_and_in_order(make: Make, tmp_path: Path) -> None:
    config = make(steps=8, stage=(Stage("a", steps=4, prose_share=0.25), Stage("b", steps=4, prose_share=0.5)))
    maker = Trainer(config, tmp_path).maker
    kinds = [maker(n).origin[0][0][0] for n in range(16)]
    assert "".join(kinds) == "qqqpqqqpqpqpqpqp"
    seen = [maker.samplers[0](k) for k in range(10)]
    assert [[i for _, i in maker(n).origin] for n in range(16) if kinds[n] == "q"] == seen


def test_a_stage_without_gradient_for_the_task_rows_leaves_them(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=2), tmp_path)
    before = trainer.model.adapter(trainer.model.llms[0]).task.weight.detach().clone()  # type: ignore[union-attr,operator]
    trainer.train()
    assert torch.equal(trainer.model.adapter(trainer.model.llms[0]).task.weight, before)  # type: ignore[union-attr,arg-type]


def test_training_stops_early_and_stays_stopped(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.5, 2.6, 2.7, 2.0])

    def evaluate(self: Trainer, kinds: tuple[str, ...]) -> None:
        self.run.log({"event": "eval", "step": self.step, "x/latents": {"nll": next(values)}})

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    config = make(steps=6, eval_every=1, patience=2)
    trainer = Trainer(config, tmp_path)
    trainer.train()
    assert trainer.step == 3
    (stop,) = records(tmp_path, "stop")
    assert stop["step"] == 3
    again = Trainer(config, tmp_path)
    again.train()
    assert again.step == 3


def test_a_measurement_that_a_kill_prevented_is_made_up(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(make(), tmp_path / "a").train()
    killed = Trainer(make(), tmp_path / "b")
    monkeypatch.setattr(killed, "evaluate", lambda kinds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    Trainer(make(), tmp_path / "b").train()
    found = [[{k: v for k, v in r.items() if k != "time"} for r in records(tmp_path / run, "eval")] for run in "ab"]
    assert found[0] == found[1]
    assert [r["step"] for r in found[0]] == [0, 3, 6]
    assert read_meta(tmp_path / "a" / "best")["step"] == read_meta(tmp_path / "b" / "best")["step"]
    # Nothing is missing now, so nothing is measured again.
    Trainer(make(), tmp_path / "b")
    assert len(records(tmp_path / "b", "eval")) == 3


def test_a_loss_that_is_not_finite_names_its_items_and_spoils_no_weight(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(), tmp_path)
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    bad = trainer.maker(2)
    poisoned = {i for _, i in bad.origin}

    def make_it(number: int) -> Any:
        return trainer_maker(number)

    trainer_maker = trainer.maker
    objective = Objective.__call__

    def call(self: Objective, model: Any, batch: Any, teachers: Any = ()) -> Any:
        loss, terms = objective(self, model, batch, teachers)
        spoil = torch.equal(batch.input_ids, bad.batch.input_ids)
        return (loss * float("nan"), {k: v * float("nan") for k, v in terms.items()}) if spoil else (loss, terms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__call__", call)
        with pytest.raises(LatentError, match=r"LW-3001 .*step 1, micro-batch 2, items ") as caught:
            trainer.train()
    assert make_it(2).origin == bad.origin
    for stream_name, index in bad.origin:
        assert f"{stream_name}[{index}]" in str(caught.value)
    if bad.origin[0][0] == "questions":
        assert all(f"(s{i})" in str(caught.value) for i in poisoned)
    # Step 0 was taken; the spoiled one was not.
    assert any(not torch.equal(p, weights[n]) for n, p in trainer.model.named_parameters())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_is_named(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(), tmp_path)
    weight = trainer.model.encoder.get_parameter("out.weight")
    weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(LatentError, match=r"LW-3001 gradient is not finite.*step 0, micro-batches 0 to 1"):
        trainer.train()
    assert torch.isfinite(weight).all()


def test_one_folder_is_trained_by_one_process(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(), tmp_path)
    with exclusive(tmp_path / "run.lock"):
        with pytest.raises(ModelError, match=r"LW-3212 another process is training"):
            trainer.train()
        with pytest.raises(ModelError, match=r"LW-3212 another process is training"):
            Trainer(make(), tmp_path)
    trainer.train()


def test_resume_refuses_other_data_but_not_other_workers(make: Make, tmp_path: Path, story_file: Path) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copyfile(story_file, own)
    config = make(data=(str(own),), steps=4)
    Trainer(config, tmp_path / "run").train(until=2)
    assert len(read_meta(tmp_path / "run" / "last")["files"]["data"]) == 1
    Trainer(replace(config, threads=1, tensorboard=False), tmp_path / "run")
    own.write_text(own.read_text() + own.read_text().splitlines()[0].replace('"s0"', '"s9"') + "\n")
    with pytest.raises(ModelError, match=r"LW-3211 the run was started with other data.*own\.jsonl"):
        Trainer(config, tmp_path / "run")


def test_the_config_in_the_folder_starts_the_same_run(make: Make, tmp_path: Path) -> None:
    stage = Stage("a", share=1.0, crops=(16,), latent_choices=("1/4", 2))
    config = make(stage=(stage,), fsq_ramp=1e-7, prose=('a"\u00e9\t',))
    text = to_toml(config)
    assert from_mapping(tomllib.loads(text), "config.toml") == config
    Trainer(make(steps=1), tmp_path)
    assert load(tmp_path / "config.toml") == make(steps=1)


def test_a_run_starts_from_the_weights_of_another(make: Make, tmp_path: Path) -> None:
    first = Trainer(make(steps=2), tmp_path / "a")
    first.train()
    second = Trainer(make(steps=4, init=str(tmp_path / "a" / "last")), tmp_path / "b")
    assert second.step == 0
    assert records(tmp_path / "b", "format") == []
    for (name, a), b in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    second.train()
    # A task that the other run did not know gets its own start and is trained; known rows are kept by shape.
    third = Trainer(make(steps=1, init=str(tmp_path / "a" / "last"), tasks=TASKS, format_steps=0), tmp_path / "c")
    rows = third.model.adapter(third.model.llms[0]).state_dict()["task.weight"]
    known = first.model.adapter(first.model.llms[0]).state_dict()["task.weight"]
    assert rows.shape[0] == 6
    assert torch.equal(rows[:4], known)
    assert rows[4:].abs().sum() > 0
    with pytest.raises(ModelError, match=r"LW-3223 .*adapter"):
        Trainer(make(init=str(tmp_path / "a" / "last"), mlp_hidden=16), tmp_path / "d")
    with pytest.raises(ModelError, match="LW-3204"):
        Trainer(make(init=str(tmp_path / "nowhere")), tmp_path / "e")
    meta = json.loads((tmp_path / "a" / "last" / "meta.json").read_text())
    meta["encoder"]["llm_fingerprint"] = "0" * 64
    (tmp_path / "a" / "last" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="LW-3101"):
        Trainer(make(init=str(tmp_path / "a" / "last")), tmp_path / "f")


def test_moments_of_other_parameters_are_refused() -> None:
    small, large = (torch.optim.AdamW([torch.nn.Parameter(torch.ones(n))]) for n in (2, 3))
    for optimizer in (small, large):
        optimizer.param_groups[0]["params"][0].grad = torch.ones_like(optimizer.param_groups[0]["params"][0])
        optimizer.step()
    load_moments(small, moments(small))
    with pytest.raises(ModelError, match=r"LW-3223 optimiser state 0\.exp_avg does not fit"):
        load_moments(small, moments(large))


def test_a_line_cut_short_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, writes=True)
    run.log({"event": "step", "step": 1})
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write('{"event": "st')
    run.log({"event": "eval", "step": 1, "x/latents": {"nll": 2.0}, "y/latents": {"nll": 4.0}})
    assert run.evals() == {1: 3.0}


def test_counted_operations_are_those_that_run(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(bundle="seed"), tmp_path)
    work, model = trainer.maker(0), trainer.model
    count = Flops(model)
    plain = replace(work, teachers=())
    # The counter does not know the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        Objective.named(trainer.config, "default")(model, plain.batch)[0].backward()
    teacher, llm = work.teachers[0], model.llms[0]
    # Outside: the counter cannot follow a view of a leaf that is made without gradients.
    given = Injection(model.task_rows(llm, 4).rows.detach())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as read, torch.no_grad():
        llm.logits(model.states(llm, teacher, given).flatten(0, 1)[teacher.scored])
    # Left out: span pooling and the encoder's projections.
    ratios = (
        count(plain, (0,)) / counted.get_total_flops(),
        (count(work, (0,)) - count(plain, (0,))) / read.get_total_flops(),
    )
    print(f"counted from shapes / counted by torch: step {ratios[0]:.3f}, teacher {ratios[1]:.3f}")
    assert 0.8 < ratios[0] < 1.1
    assert 0.95 < ratios[1] < 1.05


def test_texts_too_short_to_ask_about_give_no_loss_and_no_nan(make: Make, tmp_path: Path) -> None:
    model = Trainer(make(), tmp_path).model
    llm = model.llms[0]
    reader = TextReader.of(llm)
    batch = make_batch([Item("ab", ()), Item("cd", ())], reader.encode, [reader], Limits(4, 2, 32, 64), (0,))
    assert len(batch.trees[0].scored) == 0
    for bundle in ("default", "seed", "answer"):
        loss, terms = Objective.named(model.config, bundle)(model, batch, batch.trees)
        loss.backward()
        assert (loss.item(), terms) == (0.0, {})


def test_speed_is_logged_with_every_step(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=1), tmp_path)
    trainer.train()
    (step,) = records(tmp_path, "step")
    assert step["speed"]["samples_s"] == pytest.approx(8 / step["s"], rel=0.5)
    assert 0 < step["speed"]["peak_share"] < 1
    meter = Meter(lambda work, llms: 10**12, peak=1e13)  # type: ignore[arg-type]
    meter.add(trainer.maker(0), (0,))
    meter.began -= 2.0
    assert meter.take(processes=4)["peak_share"] == pytest.approx(0.05, rel=0.05)


def test_peak_is_of_the_faster_dtype_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 1e12, torch.bfloat16: 2e12}
    monkeypatch.setattr(speed, "_product_rate", lambda device, dtype: rates[dtype])
    cpu = torch.device("cpu")
    assert (speed.measure_peak(cpu, "fp32"), speed.measure_peak(cpu, "bf16")) == (1e12, 2e12)
    rates[torch.float32] = 3e12  # a CPU that emulates bf16
    assert speed.measure_peak(cpu, "bf16") == 3e12


def test_micro_batches_must_divide_among_processes(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def three(self: Peers, device: str) -> None:
        self.rank, self.size, self.device = 0, 3, None

    monkeypatch.setattr(Peers, "__init__", three)
    with pytest.raises(ModelError, match="LW-3210 micro-batches of a step"):
        Trainer(make(), tmp_path)
