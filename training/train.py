"""The training run: format stage, main stages, checkpoints before measurements, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ..core.console import Progress, track
from ..core.errors import LatentError, ModelError
from .building import build_model, parameters, pick_device, start
from .checkpoint import config_of, load_into, load_tensors, read_meta, save
from .config import Config
from .curves import draw
from .data import Item, read_prose, read_questions
from .evaluate import measure, pick
from .maker import Maker, TextReader, Work
from .objective import Objective, format_loss
from .optim import format_optimizer, load_moments, main_optimizer, moments, schedule, set_rate, set_trained
from .parallel import Peers
from .pipeline import pick_workers, stream
from .runfolder import RunFolder, fingerprints, held_out
from .speed import Flops, Meter, measure_peak
from .stages import at
from .student import start_student, teach
from .teachers import Teachers
from .terms import Done, Record, means, records
from .warm import start_from

FIRST_KINDS = ("none", "first", "full", "latents", "shuffled")
"""What is measured before the first step; later only what changes: ``LATER_KINDS``."""
LATER_KINDS = ("latents", "shuffled")
FREE = ("threads", "workers", "tensorboard", "teacher_cache")
"""Options that a resumed run may change: they do not touch what is computed."""


@dataclass(frozen=True)
class Data:
    """Streams of a run: questions, prose (may be empty) and held-out questions."""

    questions: list[Item]
    prose: list[Item]
    held_out: list[Item]

    @classmethod
    def read(cls, config: Config) -> Data:
        """Read and check every file that the config names."""
        return cls(read_questions(config.data), read_prose(config.prose), read_questions(config.eval_data))


class Trainer:
    """One run in one folder; constructing it again on that folder resumes it.

    Args:
        config: the run's config; must equal the folder's if it was started before.
        out: run folder, holds ``last/`` (resumable), ``best/``, ``log.jsonl`` and ``config.toml``.

    Raises:
        InputError: 2101-2107 from the data; ModelError 3201-3204 from the models.
        ModelError: 3210 micro-batches that cannot be shared evenly among the processes; 3211 the folder holds a run
            with another config or other data; 3212 another process trains in it; 3220-3223 its checkpoint, or that of
            ``init``, is damaged.
    """

    def __init__(self, config: Config, out: Path) -> None:
        self.config, self.out = config, out
        self.peers = Peers(config.device)
        self.run = RunFolder(out, self.peers.writes)
        self.micro = config.batch // config.micro_batch
        if self.micro % self.peers.size:
            raise ModelError(
                3210,
                "micro-batches of a step do not divide among the processes",
                expected=f"expected batch / micro_batch a multiple of {self.peers.size}, got {self.micro}",
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = self.peers.device or pick_device(config.device)
        if self.device.type == "cuda" and config.precision == "bf16":
            torch.set_float32_matmul_precision("high")
        with self.run.owned():
            self.data = Data.read(config)
            self.files = fingerprints(config)
            self.held_out = pick(self.data.held_out, config.eval_questions)
            # Asked once: the first process may have written it when another one looks.
            resumes = bool(self.peers.from_first((self.run.last / "meta.json").is_file()))
            if resumes:
                self._check_resume(read_meta(self.run.last))
            self.model = build_model(config, self.device)
            teach(self.model)
            # Files of another LLM or temperature are refused here, those of other task rows when these are trained.
            self.teachers = Teachers(config, self.model, started=False)
            readers = [TextReader.of(llm) for llm in self.model.llms]
            self.maker = Maker(config, self.data.questions, self.data.prose, TextReader.of(self.model.source), readers)
            self.spans = config.spans()
            self.step, self.best = 0, math.inf
            self.meter = Meter(Flops(self.model), measure_peak(self.device, config.precision))
            if config.tensorboard:
                self.run.show_on_board(read_meta(self.run.last)["step"] if resumes else 0)
            if resumes:
                self._resume()
            else:
                self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peers.close()

    def _start(self) -> None:
        self.run.write_config(self.config)
        prose = self.data.prose[:: max(1, len(self.data.prose) // 20000)]
        texts = [i.context for i in self.data.questions + prose]
        start(self.model, texts)
        trained: dict[str, tuple[str, ...]] = {}
        if self.config.init:
            trained = start_from(self.model, Path(self.config.init), texts)
        elif self.config.encoder_type == "bytes":
            trained = start_student(self.model, texts)
        self.run.log({"event": "start", "parameters": parameters(self.model), "config": self.config.to_json()})
        self._train_format(trained)
        self.peers.same(self.model.state_dict().values())
        self.optimizer = main_optimizer(self.model, self.config)
        self.save()
        self.evaluate(FIRST_KINDS)

    def _check_resume(self, meta: dict[str, Any]) -> None:
        folder = self.run.last
        stored, own = config_of(meta, str(folder)).to_json(), self.config.to_json()
        changed = sorted(k for k, v in stored.items() if v != own[k] and k not in FREE)
        if changed:
            raise ModelError(
                3211,
                f"the run was started with another {changed[0]}",
                where=str(folder),
                expected=f"expected {stored[changed[0]]!r}, got {own[changed[0]]!r}",
                fix="use another folder, or the config stored in it",
            )
        # Runs of before have no fingerprints.
        for option, sums in meta.get("files", {}).items():
            for path, was, now in zip(getattr(self.config, option), sums, self.files[option], strict=True):
                if was != now:
                    raise ModelError(
                        3211,
                        "the run was started with other data",
                        where=str(path),
                        expected=f"expected SHA-256 {was[:12]}, got {now[:12]}",
                        fix="put the file back, or use another folder",
                    )

    def _resume(self) -> None:
        folder = self.run.last
        meta = load_into(folder, self.model)
        self.optimizer = main_optimizer(self.model, self.config)
        # Before the first step Adam has no state, so there is nothing to put back.
        if meta["step"]:
            load_moments(self.optimizer, load_tensors(folder / "state.safetensors"))
        self.step, self.best = meta["step"], meta["best"] if meta["best"] is not None else math.inf
        # last/ is written before it is measured, so best/ may know of a lower figure.
        if (self.run.best / "meta.json").is_file():
            self.best = min(self.best, read_meta(self.run.best)["best"])
        missed = self._measured_at(self.step) and self.step not in self.run.evals()
        self.run.log({"event": "resume", "step": self.step})
        if self.peers.from_first(missed):
            self.evaluate(LATER_KINDS if self.step else FIRST_KINDS)

    def _train_format(self, trained: Mapping[str, tuple[str, ...]]) -> None:
        """Task rows alone, on full text: the answer format is learned before the latents can be bent to carry it.

        Those of LLMs whose rows are ``trained`` for all tasks stay as they are.
        """
        for number, llm in enumerate(self.model.llms):
            if not set(self.config.tasks) - set(trained.get(llm.name, ())):
                continue
            optimizer = format_optimizer([self.model.adapter(llm).task.weight], self.config)  # type: ignore[union-attr,list-item]
            for step in range(self.config.format_steps):
                batch = self.maker.format(step).to(self.device)
                loss = format_loss(self.config, self.model, batch.trees[number], llm)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 10 == 0 or step == self.config.format_steps - 1:
                    self.run.log({"event": "format", "llm": llm.name, "step": step, "loss": round(loss.item(), 4)})

    def train(self, until: int | None = None) -> None:
        """Run to ``until`` (default: the config's ``steps``), saving at the end and before every measurement.

        Raises:
            LatentError: 3001 a loss or gradient that is not finite.
            ModelError: 3212 another process trains in the folder.
        """
        config = self.config
        end = config.steps if until is None else min(until, config.steps)
        with self.run.owned(), self._progress() as progress:
            progress.advance(self.step)
            self.teachers = Teachers(config, self.model)
            self.teachers.announce(self.maker, self._numbers(end))
            works = stream(self.maker, self._numbers(end), pick_workers(config.workers, self.device), self.device)
            self.meter.take()
            while self.step < end and not self._exhausted():
                began = time.perf_counter()
                logged = self._step(works)
                self.step += 1
                seconds = round(time.perf_counter() - began, 3)
                speed = self.meter.take(self.peers.size)
                self.run.log({"event": "step", "step": self.step, **logged, "s": seconds, "speed": speed})
                progress.note(f"{speed['samples_s']:.1f} samples/s, {100 * speed['peak_share']:.0f} % of peak")
                progress.advance()
                if self.step % config.save_every == 0 or self.step == end or self._measured_at(self.step):
                    self.save()
                if self._measured_at(self.step):
                    self.evaluate(LATER_KINDS)
                    self.meter.take()
            if self.teachers.caches:
                self.run.log({"event": "teacher", "read": self.teachers.read, "recalled": self.teachers.recalled})

    def _progress(self) -> AbstractContextManager[Progress]:
        return track("train", total=self.config.steps, unit="step", quiet=None if self.peers.writes else True)

    def _numbers(self, end: int) -> list[int]:
        """The micro-batches that are this process's until step ``end``."""
        return list(range(self.step * self.micro + self.peers.rank, end * self.micro, self.peers.size))

    def _measured_at(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.steps

    def _exhausted(self) -> bool:
        """Early stop: the last ``patience`` measurements were no better than the best before them."""
        if not self.config.patience:
            return False
        values = [value for step, value in sorted(self.run.evals().items()) if step <= self.step]
        since = len(values) - 1 - values.index(min(values)) if values else 0
        stops = bool(self.peers.from_first(since >= self.config.patience))
        if stops:
            self.run.log({"event": "stop", "step": self.step, "why": f"no better for {since} measurements"})
        return stops

    def _step(self, works: Iterator[Work]) -> dict[str, float]:
        config, span = self.config, at(self.spans, self.step)
        set_trained(self.model, span.stage)
        set_rate(self.optimizer, schedule(self.step, config), span.stage)
        self.optimizer.zero_grad(set_to_none=True)
        objective = Objective.of(config, span.stage, self.teachers.caches)
        done: list[Done] = []
        for _ in range(self.micro // self.peers.size):
            work = next(works)
            recalled = self.teachers.recalled
            loss, terms = objective(self.model, work.batch, work.teachers)
            (loss / self.micro).backward()
            self.meter.add(work if self.teachers.recalled == recalled else work.untaught(), objective.llms)
            done.append(Done(work.number, work.origin, {"loss": loss.detach(), **terms}))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.peers.sum_gradients(trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
        # The one wait of a step: everything that is logged comes in one copy.
        values = torch.stack([norm.float(), *(v.float() for one in done for v in one.terms.values())]).tolist()
        found = self.peers.gather(records(done, values[1:]))
        self._check_finite(found, values[0])
        self.optimizer.step()
        return {"stage": span.stage.name, **means(found), "grad": round(values[0], 3)}

    def _check_finite(self, found: list[Record], norm: float) -> None:
        """Before the optimiser's step, so that ``last/`` and the weights in memory stay good."""
        for record in found:
            if not all(math.isfinite(value) for value in record.terms.values()):
                items = ", ".join(self._named(origin) for origin in record.origin)
                raise LatentError(
                    3001,
                    "loss is not finite",
                    where=f"step {self.step}, micro-batch {record.number}, items {items}",
                    expected=str(record.terms),
                )
        if not math.isfinite(norm):
            numbers = f"{found[0].number} to {found[-1].number}"
            raise LatentError(3001, "gradient is not finite", where=f"step {self.step}, micro-batches {numbers}")

    def _named(self, origin: tuple[str, int]) -> str:
        ids = [q.id for q in self.maker.item(origin).questions if q.id]
        return f"{origin[0]}[{origin[1]}]" + (f" ({ids[0]})" if ids else "")

    def evaluate(self, kinds: tuple[str, ...]) -> None:
        """Held-out NLL and first-token accuracy per kind of prefix; keeps the best checkpoint by latent NLL."""
        if not self.peers.writes:
            return
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
        record = {"event": "eval", "step": self.step, "questions": self.config.eval_questions, **scores}
        value = held_out(record)
        if value < self.best:
            self.best = value
            save(self.run.best, self.model, step=self.step, best=value)
        # After the checkpoint: a measurement that is in the log is not made again.
        self.run.log(record)
        draw(self.out)

    def save(self) -> None:
        """Write ``last/``, from which a run goes on, behind what its teachers said until here."""
        self.teachers.flush()
        if self.peers.writes:
            best = None if math.isinf(self.best) else self.best
            state = moments(self.optimizer)
            save(self.run.last, self.model, step=self.step, best=best, files=self.files, state=state)
