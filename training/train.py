"""The training run: format stage, main stage, checkpoints before measurements, exact resume."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.console import message, track
from ..core.errors import LatentError, ModelError
from .batch import Batch, Limits, make_batch
from .building import build_model, parameters, pick_device, start
from .checkpoint import config_of, load_into, load_tensors, read_meta, save
from .config import Config
from .data import Item, Sampler, read_prose, read_questions
from .evaluate import measure, pick
from .fsq import rounding_share
from .objective import Objective, format_loss
from .optim import format_optimizer, main_optimizer, schedule, set_rate


@dataclass(frozen=True)
class Data:
    """Streams of a run: questions, prose (may be empty) and held-out questions."""

    questions: list[Item]
    prose: list[Item]
    held_out: list[Item]


class Trainer:
    """One run in one folder; constructing it again on that folder resumes it.

    Args:
        config: the run's config; must equal the folder's if it was started before.
        out: run folder, holds ``last/`` (resumable), ``best/`` and ``log.jsonl``.

    Raises:
        InputError: 2101-2107 from the data; ModelError 3201-3204 from the models.
        ModelError: 3211 the folder holds a run with another config; 3220-3223 its checkpoint is damaged.
    """

    def __init__(self, config: Config, out: Path) -> None:
        self.config, self.out = config, out
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        self.data = Data(read_questions(config.data), read_prose(config.prose), read_questions(config.eval_data))
        self.held_out = pick(self.data.held_out, config.eval_questions)
        self.model = build_model(config, self.device)
        self.step = 0
        self.best = math.inf
        self.limits = Limits(
            config.latent_len,
            config.task_tokens,
            config.max_tokens,
            config.branch_tokens,
            config.reconstruct_share,
            choices=config.latent_choices,
        )
        sampler = Sampler([len(i.context) for i in self.data.questions], config.micro_batch, config.seed)
        self.samplers = [sampler]
        if self.data.prose and config.prose_share > 0:
            self.samplers.append(
                Sampler([len(i.context) for i in self.data.prose], config.micro_batch, config.seed + 1)
            )
        if (out / "last" / "meta.json").is_file():
            self._resume()
        else:
            self._start()

    def _start(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        start(
            self.model,
            [i.context for i in self.data.questions + self.data.prose[:: max(1, len(self.data.prose) // 20000)]],
        )
        self._log({"event": "start", "parameters": parameters(self.model), "config": self.config.to_json()})
        self._train_format()
        self.optimizer = main_optimizer(self.model, self.config)
        self.save()
        self.evaluate(("none", "first", "full", "latents", "shuffled"))

    def _resume(self) -> None:
        folder = self.out / "last"
        meta = read_meta(folder)
        stored = config_of(meta, str(folder))
        changed = sorted(k for k, v in stored.to_json().items() if v != self.config.to_json()[k])
        if changed:
            raise ModelError(
                3211,
                f"the run was started with another {changed[0]}",
                where=str(folder),
                expected=f"expected {stored.to_json()[changed[0]]!r}, got {self.config.to_json()[changed[0]]!r}",
                fix="use another folder, or the config stored in it",
            )
        load_into(folder, self.model)
        self.optimizer = main_optimizer(self.model, self.config)
        # Before the first step Adam has no state, so there is nothing to put back.
        if meta["step"]:
            load_moments(self.optimizer, load_tensors(folder / "state.safetensors"))
        self.step, self.best = meta["step"], meta["best"] if meta["best"] is not None else math.inf
        # last/ is written before it is measured, so best/ may know of a lower figure.
        if (self.out / "best" / "meta.json").is_file():
            self.best = min(self.best, read_meta(self.out / "best")["best"])
        self._log({"event": "resume", "step": self.step})

    def _train_format(self) -> None:
        """Task rows alone, on full text: the answer format is learned before the latents can be bent to carry it."""
        for llm in self.model.llms:
            optimizer = format_optimizer([self.model.adapter(llm).task.weight], self.config)  # type: ignore[union-attr,list-item]
            for step in range(self.config.format_steps):
                batch = self._batch(step, stage=0, text=True)
                loss = format_loss(self.config, self.model, batch.trees[self.model.llms.index(llm)], llm)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 10 == 0 or step == self.config.format_steps - 1:
                    self._log({"event": "format", "llm": llm.name, "step": step, "loss": round(loss.item(), 4)})

    def _batch(self, number: int, stage: int, text: bool = False, again: Batch | None = None) -> Batch:
        config = self.config
        # Stream 1 takes its share of micro-batches evenly: number 0, 1, ... alternates at a share of one half.
        share = config.prose_share if len(self.samplers) > 1 else 0.0
        before, after = math.floor(number * share), math.floor((number + 1) * share)
        stream = int(after > before)
        index = before if stream else number - before
        items = self.data.prose if stream else self.data.questions
        chosen = [items[i] for i in self.samplers[stream](index)]
        seed = (config.seed, stage, number)
        llms = self.model.llms
        limits = self.limits
        if config.fsq_profile:
            step = number // (config.batch // config.micro_batch)
            limits = replace(limits, rounding=rounding_share(step, config.steps, config.fsq_share, config.fsq_ramp))
        return make_batch(chosen, self.model.source.encode, llms, limits, seed, text).to(self.device)

    def train(self, until: int | None = None) -> None:
        """Run to ``until`` (default: the config's ``steps``), saving at the end and before every measurement.

        Raises:
            LatentError: 3001 a loss that is not finite.
        """
        config = self.config
        end = config.steps if until is None else min(until, config.steps)
        with track("train", total=config.steps, unit="step") as progress:
            progress.advance(self.step)
            while self.step < end:
                began = time.perf_counter()
                logged = self._step()
                self.step += 1
                seconds = time.perf_counter() - began
                self._log({"event": "step", "step": self.step, **logged, "s": round(seconds, 3)})
                progress.advance()
                last = self.step == config.steps
                if self.step % config.save_every == 0 or self.step == end:
                    self.save()
                if self.step % config.eval_every == 0 or last:
                    self.evaluate(("latents", "shuffled"))

    def _step(self) -> dict[str, float]:
        config = self.config
        set_rate(self.optimizer, schedule(self.step, config))
        self.optimizer.zero_grad(set_to_none=True)
        micro = config.batch // config.micro_batch
        sums: dict[str, float] = {}
        for part in range(micro):
            number = self.step * micro + part
            batch = self._batch(number, stage=1)
            teachers = self._batch(number, stage=1, text=True).trees if config.kd_weight else ()
            loss, terms = Objective.named(config, "default")(self.model, batch, teachers)
            logged = {name: value.item() for name, value in terms.items()}
            if not torch.isfinite(loss):
                raise LatentError(
                    3001, "loss is not finite", where=f"step {self.step}, micro-batch {number}", expected=str(logged)
                )
            (loss / micro).backward()
            for name, value in logged.items():
                sums[name] = sums.get(name, 0.0) + value / micro
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
        self.optimizer.step()
        return {**{k: round(v, 4) for k, v in sums.items()}, "grad": round(float(norm), 3)}

    def evaluate(self, kinds: tuple[str, ...]) -> None:
        """Held-out NLL and first-token accuracy per kind of prefix; keeps the best checkpoint by latent NLL."""
        self.model.eval()
        scores: dict[str, Any] = {}
        for llm in self.model.llms:
            for kind in kinds:
                answers = measure(self.model, llm, self.held_out, kind)
                scores[f"{llm.name}/{kind}"] = {
                    "nll": round(float(answers.nll.mean()), 4),
                    "first_token": round(float(answers.first.mean()), 4),
                }
        self.model.train()
        self._log({"event": "eval", "step": self.step, "questions": self.config.eval_questions, **scores})
        value = float(np.mean([scores[f"{llm.name}/latents"]["nll"] for llm in self.model.llms]))
        if value < self.best:
            self.best = value
            save(self.out / "best", self.model, step=self.step, best=value)

    def save(self) -> None:
        """Write ``last/``, from which a run goes on."""
        best = None if math.isinf(self.best) else self.best
        save(self.out / "last", self.model, step=self.step, best=best, state=moments(self.optimizer))

    def _log(self, record: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 1), **record})
        if record["event"] != "step":
            message(line)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as f:
            f.write(line + "\n")


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as named tensors, in parameter order."""
    out: dict[str, Tensor] = {}
    for index, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            out[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return out


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of ``moments`` back."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for label, value in tensors.items():
        index, _, name = label.partition(".")
        parameter = parameters[int(index)]
        optimizer.state[parameter][name] = value if name == "step" else value.to(parameter.device)
