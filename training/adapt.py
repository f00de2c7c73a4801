"""``latentwire adapt``: teach one more frozen LLM to read the latents of an encoder that stays as it is.

Only the new adapter and its task rows move. The encoder is copied bit for bit, so that frames that were sent before
can be read by the new LLM too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..core.console import message, print_json, print_table
from ..core.errors import InputError
from ..core.files import atomic_write_json
from .building import open_checkpoint
from .checkpoint import config_of, read_meta
from .config import Config
from .data import read_questions
from .data_split import split, write_passages
from .diagnose import Gate, reconstruction
from .evaluate import measure, pick
from .evaluation.protocol import Protocol
from .llm import LMWrapper
from .model import LatentModel
from .quality import SHORT, of_llm
from .report import find
from .stages import Stage
from .train import Trainer

RESULT: Final = "adapt.json"
"""Figures, gates and verdict, in the folder of the run."""


@dataclass(frozen=True)
class Request:
    """What to adapt.

    Attributes:
        llm: name, folder or ``hf:org/name`` of the LLM that shall read the latents.
        checkpoint: folder, run or ``reference``: whose encoder.
        data: question files.
        out: folder of the run; one that holds this run goes on.
        eval_data: held-out questions; empty: one context in ten of ``data``.
        prose: passages; empty: the contexts of ``data``.
        steps, batch, micro_batch, precision, device, seed, threads: as in ``Config``.
        questions: held-out questions of the verdict.
    """

    llm: str
    checkpoint: str
    data: Sequence[Path]
    out: Path
    eval_data: Sequence[Path] = ()
    prose: Sequence[Path] = ()
    steps: int = 200
    batch: int = 16
    micro_batch: int = 8
    questions: int = 160
    precision: str = "bf16"
    device: str = "auto"
    seed: int = 0
    threads: int = 0


def plan(request: Request) -> Config:
    """The config of the run, without its data: the encoder's options are the checkpoint's.

    Raises:
        ModelError: 3204, 3210, 3220, 3221 from the checkpoint.
    """
    folder = find(request.checkpoint)
    base = config_of(read_meta(folder), str(folder))
    return replace(
        base,
        llms=(request.llm,),
        init=str(folder.resolve()),
        teacher="",
        features=(),
        bundle="default",
        kd_weight=0.0,
        stage=(Stage("adapter", share=1.0, train=("adapters",), fsq_share=0.0, llms=(request.llm,)),),
        data=(),
        eval_data=(),
        prose=(),
        batch=request.batch,
        micro_batch=min(request.micro_batch, request.batch),
        prose_share=0.2,
        reconstruct_share=0.5,
        continue_share=0.0,
        format_steps=min(20, request.steps),
        steps=request.steps,
        lr_new=1e-3,
        lr_floor=0.05,
        warmup=0.1,
        precision=request.precision,
        device=request.device,
        seed=request.seed,
        threads=request.threads,
        save_every=max(1, request.steps // 10),
        eval_every=max(1, request.steps // 4),
        eval_questions=request.questions,
        patience=0,
        tensorboard=False,
    )


def with_data(config: Config, request: Request) -> Config:
    """The config with its files; those that are made lie in ``OUT/data``.

    Raises:
        InputError: 2103, 2104, 2107 from the data; 2104 too little of it.
    """
    items = read_questions([str(path) for path in request.data])
    made = request.out / "data"
    data, held = tuple(map(str, request.data)), tuple(map(str, request.eval_data))
    if not held:
        train, out = split(items, made)
        data, held = (str(train),), (str(out),)
        items = read_questions(data)
    prose = tuple(map(str, request.prose))
    if not prose:
        write_passages(items, made / "passages.parquet")
        prose = (str(made / "passages.parquet"),)
    return replace(config, data=data, eval_data=held, prose=prose)


def adapt(request: Request, as_json: bool) -> bool:
    """Train, judge, show; whether it is worth using.

    Raises:
        InputError: from the data. ModelError: 3101-3223 from the checkpoint and the LLM. LatentError: 3001.
    """
    config = with_data(plan(request), request)
    with Trainer(config, request.out) as trainer:
        trainer.train()
        name = trainer.model.llms[0].name
    # The weights of the best measurement, read as anyone would read them.
    del trainer
    model, meta = open_checkpoint(request.out / "best", request.device, request.precision)
    items = pick(read_questions(config.eval_data), request.questions)
    found = judge(model, model.llms[0], items)
    found |= {"llm": name, "checkpoint": request.checkpoint, "step": meta["step"], "encoder": meta["encoder"]}
    atomic_write_json(request.out / RESULT, found)
    show(found, as_json)
    return bool(found["go"])


def judge(model: LatentModel, llm: LMWrapper, items: Sequence[Any]) -> dict[str, Any]:
    """Figures on held-out questions, the gates of training, and what they mean in a sentence.

    Returns:
        ``figures`` (``answers`` and ``reconstruction``), ``gates``, ``go`` (every gate of the answers is passed) and
        ``verdict``.
    """
    if len(items) < 2:
        raise InputError(2104, "too few held-out contexts", expected=f"expected at least 2, got {len(items)}")
    figures = of_llm({kind: measure(model, llm, items, kind) for kind in SHORT}, items, Protocol())
    read_back, reading_gates = reconstruction(model, llm, items, 0)
    gates = answer_gates(figures, model.config.latent_len)
    go = all(gate.passed for gate in gates)
    return {
        "figures": {"answers": figures, "reconstruction": read_back},
        "gates": [{**asdict(g), "passed": g.passed} for g in (*gates, *reading_gates)],
        "go": go,
        "verdict": verdict(gates, reading_gates),
    }


def answer_gates(figures: dict[str, Any], latents: int) -> list[Gate]:
    """What the answers must show."""
    nll = {kind: figures["rows"][kind]["nll"] for kind in SHORT}
    over_none, over_first = (round(nll[kind] - nll["latents"], 4) for kind in ("none", "first"))
    train_on = "train on: more steps, more data"
    return [
        Gate("answers", "shuffle gap, nats/token", figures["shuffle_gap"], 0.3, "the latents are not read"),
        Gate("answers", "gap closed", figures["gap_closed"], 0.35, train_on),
        Gate("answers", "NLL below no context", over_none, 0.0, train_on),
        Gate("answers", f"NLL below the first {latents} tokens", over_first, 0.0, train_on),
    ]


def verdict(answers: Sequence[Gate], reading: Sequence[Gate]) -> str:
    """One sentence for people."""
    shuffle, *others = answers
    if shuffle.value is not None and shuffle.value < shuffle.needed / 3:
        return "no-go: the LLM does not read the latents; another text's do as well"
    if not shuffle.passed:
        return "no-go yet: the latents are read a little; train on"
    failed = [gate.figure for gate in others if not gate.passed]
    if failed:
        return f"no-go yet: the latents are read, but not well enough ({', '.join(failed)}); train on"
    if not all(gate.passed for gate in reading):
        return "go: questions are answered from the latents; the text itself cannot be read back word for word"
    return "go: questions are answered from the latents, and the text can be read back"


def show(found: dict[str, Any], as_json: bool) -> None:
    """Gates as a table and the verdict, or everything as JSON."""
    if as_json:
        print_json(found)
        return
    rows = []
    for gate in found["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:.3f}"
        needed = f"{'<' if gate['below'] else '>'} {gate['needed']:g}"
        rows.append([gate["check"], gate["figure"], value, needed, "yes" if gate["passed"] else gate["otherwise"]])
    print_table(["check", "figure", "value", "needed", "passed"], rows, title=f"{found['llm']}, step {found['step']}")
    message(found["verdict"])
