"""``latentwire eval``: measure a checkpoint, print the table, keep the figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.console import message, print_json, print_table
from ..core.errors import InputError, ModelError
from ..core.files import atomic_write_json, sha256_file
from ..core.joined import joined_folder
from .building import open_checkpoint
from .checkpoint import read_meta
from .data import Item, read_questions
from .evaluate import pick
from .evaluation.kinds import parse
from .evaluation.protocol import EXAMPLE, Protocol
from .evaluation.rescoring import ensemble
from .evaluation.store import Rows
from .evaluation.table import ensemble_table, remarks, table
from .model import LatentModel
from .quality import all_rows, answer_all, of_llm


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        checkpoint: folder or ``reference``.
        data: question files.
        questions: how many, in a seeded order.
        llms: only these of the checkpoint's LLMs; empty: all.
        max_new_tokens: greedy tokens an answer; 0: no F1 and EM.
        precision: ``fp32`` or ``bf16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: JSON file for the figures; finished rows and the picture are kept beside it.
        record: store the figures in the checkpoint's ``meta.json``.
        rows: kinds of rows; empty: all of the protocol.
        protocol: ``task-token`` or ``one-shot``.
        example: question file whose first row is the worked example of ``one-shot``.
        latents: further rows of latents, shuffled and first tokens at these numbers: ``16``, ``1/4``.
        joint: also let all LLMs choose among each other's answers.
        batch: contexts in one pass.
    """

    checkpoint: str
    data: Sequence[Path]
    questions: int = 300
    llms: tuple[str, ...] = ()
    max_new_tokens: int = 16
    precision: str = "fp32"
    device: str = "auto"
    out: Path | None = None
    record: bool = False
    rows: tuple[str, ...] = ()
    protocol: str = "task-token"
    example: Path | None = None
    latents: tuple[str, ...] = ()
    joint: bool = False
    batch: int = 8
    encoder: str = ""


def report(request: Request, as_json: bool) -> None:
    """Measure and show.

    Raises:
        InputError: 2103, 2104, 2107 from the data; 2111 an unknown row, or one LLM where two are needed.
        ModelError: 3101, 3102, 3201-3223 from the checkpoint and its LLMs; 3101 also if it was replaced meanwhile.
    """
    # Options and data first: they are read in a second, and a wrong line should not cost the loading of a model.
    more = [f"{base}@{count}" for count in request.latents for base in ("first", "shuffled", "latents")]
    for name in (*request.rows, *more):
        parse(name)
    items = pick(read_questions([str(path) for path in request.data]), request.questions)
    protocol = _protocol(request)
    folder = find(request.checkpoint, request.encoder)
    model, meta = open_checkpoint(folder, request.device, request.precision, request.llms)
    warn_of_cuts(model, items)
    kinds = (*(request.rows or all_rows(protocol, model.config)), *more)
    found = _facts(request, protocol, model, meta, items)
    rows = Rows(request.out.with_suffix(".rows.jsonl") if request.out else None, _of_rows(found, meta, items))
    answers = answer_all(
        model,
        items,
        max_new_tokens=request.max_new_tokens,
        batch=request.batch,
        kinds=kinds,
        protocol=protocol,
        rows=rows,
    )
    found["llms"] = {name: of_llm(own, items, protocol) for name, own in answers.items()}
    if request.joint:
        proposed = {name: own["latents"] for name, own in answers.items()}
        found["joint"] = ensemble(model, items, proposed, protocol, batch=request.batch)
    if request.out:
        from .evaluation.plot import draw

        atomic_write_json(request.out, found)
        draw(found, request.out.with_suffix(".png"))
    show(found, as_json)
    if request.record:
        store(folder, found)


def find(checkpoint: str, encoder: str = "") -> Path:
    """The folder of a checkpoint: itself, the best or last one of a run, or the one that ships as ``reference``.

    Args:
        checkpoint: folder or ``reference``.
        encoder: kind of its second encoder; empty: the one that its adapters were trained with.
    """
    folder = Path(checkpoint)
    if checkpoint == "reference" and not folder.is_dir():
        folder = Path(__file__).resolve().parent.parent / "reference"
    inside = (folder / name for name in ("best", "last") if not (folder / "meta.json").is_file())
    found = next((path for path in inside if (path / "meta.json").is_file()), folder)
    return joined_folder(found, encoder) if encoder else found


def _protocol(request: Request) -> Protocol:
    example = EXAMPLE
    if request.example is not None:
        first = read_questions([str(request.example)])
        if not first:
            raise InputError(2104, "no example in the file", where=str(request.example))
        example = Item(first[0].context, first[0].questions[:1])
    if request.joint and request.rows and "latents" not in request.rows:
        raise InputError(2111, "joint rescoring needs the row latents", expected=f"got {', '.join(request.rows)}")
    return Protocol(request.protocol, example)


def _facts(
    request: Request, protocol: Protocol, model: LatentModel, meta: dict[str, Any], items: Sequence[Item]
) -> dict[str, Any]:
    return {
        "checkpoint": meta["encoder"]["fingerprint"],
        "step": meta.get("step"),
        "data": {path.name: sha256_file(path) for path in request.data},
        "questions": sum(len(item.questions) for item in items),
        "contexts": len(items),
        "protocol": {
            **protocol.describe(),
            "max_new_tokens": request.max_new_tokens,
            "precision": request.precision,
            "seed": 0,
        },
        "latents": model.config.latent_len,
    }


def _of_rows(found: dict[str, Any], meta: dict[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """What a measured row depends on: a figure of other weights, questions or prompts is another figure."""
    asked = [[i.context, [[q.text, *q.answers] for q in i.questions]] for i in items]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    weights = {name: about["fingerprint"] for name, about in meta["adapters"].items()}
    features = {name: {kind: own["sha256"] for kind, own in of.items()} for name, of in meta["features"].items()}
    return {
        "checkpoint": found["checkpoint"],
        "adapters": weights,
        "items": digest,
        "protocol": found["protocol"],
        **({"features": features} if features else {}),
    }


def warn_of_cuts(model: LatentModel, items: Sequence[Item]) -> None:
    """Say how many texts are longer than the encoder's window: what is behind it can be asked, not answered."""
    window = model.config.max_tokens
    unit = "bytes" if model.config.encoder_type == "bytes" else "tokens"
    cut = sum(len(model.ids(item.context, window + 1)) > window for item in items)
    if cut:
        message(f"{cut} of {len(items)} texts are longer than {window} {unit} and are cut there, in every row")


def show(found: dict[str, Any], as_json: bool) -> None:
    """The figures on stdout: a table for each LLM, or JSON."""
    if as_json:
        print_json(found)
        return
    protocol = found["protocol"]["name"]
    for name, figures in found["llms"].items():
        columns, rows = table(figures, found["latents"])
        print_table(columns, rows, title=f"{name}, {figures['questions']} questions, {protocol}, 95 % intervals")
        for line in remarks(figures):
            message(line)
    if "joint" in found:
        columns, rows = ensemble_table(found["joint"])
        print_table(columns, rows, title="all LLMs choose together among their answers from latents")


def store(folder: Path, found: dict[str, Any]) -> None:
    """Put the figures into ``meta.json``, outside the fingerprint: measuring a checkpoint makes it no other one.

    Figures of other LLMs and of the other protocol stay, as long as they belong to these weights; where they were
    measured on something else, they say on what.

    Raises:
        ModelError: 3101 another checkpoint lies there by now, as when a run goes on beside the measurement.
    """
    meta = read_meta(folder)
    if meta["encoder"]["fingerprint"] != found["checkpoint"]:
        raise ModelError(
            3101,
            "checkpoint was replaced while it was measured",
            where=str(folder),
            expected=f"expected {found['checkpoint'][:12]}, got {meta['encoder']['fingerprint'][:12]}",
            fix="measure a copy",
        )
    old = meta.get("quality") or {}
    if old.get("checkpoint") != found["checkpoint"]:
        old = {}
    if found["protocol"]["name"] == "one-shot":
        quality = {**old, "one_shot": _beside(old.get("one_shot") or {}, found)}
    else:
        quality = {**{k: v for k, v in old.items() if k == "one_shot"}, **_beside(old, found)}
    # Readers of any age look for the checkpoint at the top.
    quality.setdefault("checkpoint", found["checkpoint"])
    atomic_write_json(folder / "meta.json", {**meta, "quality": quality})


def _beside(old: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """``found``, and the figures of LLMs that it does not speak of."""
    facts = {key: old.get(key) for key in ("data", "questions", "contexts", "protocol", "step")}
    same = all(found.get(key) == value for key, value in facts.items())
    kept = {
        name: figures if same else {"measured_on": facts, **figures}
        for name, figures in old.get("llms", {}).items()
        if name not in found["llms"]
    }
    return {**found, "llms": {**kept, **found["llms"]}}
