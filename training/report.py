"""``latentwire eval``: measure a checkpoint, print the table, keep the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.console import message, print_json, print_table
from ..core.errors import ModelError
from ..core.files import atomic_write_json, sha256_file
from .building import open_checkpoint
from .checkpoint import read_meta
from .data import read_questions
from .evaluate import pick
from .quality import quality, table


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
        out: JSON file for the figures.
        record: store them in the checkpoint's ``meta.json``.
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


def report(request: Request, as_json: bool) -> None:
    """Measure and show.

    Raises:
        InputError: 2103, 2104, 2107 from the data.
        ModelError: 3102, 3201-3223 from the checkpoint and its LLMs; 3101 it was replaced while it was measured.
    """
    folder = Path(request.checkpoint)
    if request.checkpoint == "reference" and not folder.is_dir():
        folder = Path(__file__).resolve().parent.parent / "reference"
    # Data first: it is read in a second, and a wrong line should not cost the loading of a model.
    items = pick(read_questions([str(path) for path in request.data]), request.questions)
    model, meta = open_checkpoint(folder, request.device, request.precision, request.llms)
    found: dict[str, Any] = {
        "checkpoint": meta["encoder"]["fingerprint"],
        "step": meta.get("step"),
        "data": {path.name: sha256_file(path) for path in request.data},
        "questions": sum(len(item.questions) for item in items),
        "contexts": len(items),
        "protocol": {
            "prompt": "BOS, context, task tokens, question, 'Answer:'",
            "max_new_tokens": request.max_new_tokens,
            "precision": request.precision,
            "seed": 0,
        },
        "latents": model.config.latent_len,
        "llms": quality(model, items, max_new_tokens=request.max_new_tokens),
    }
    if request.out:
        atomic_write_json(request.out, found)
    show(found, as_json)
    if request.record:
        store(folder, found)


def show(found: dict[str, Any], as_json: bool) -> None:
    """The figures on stdout: a table for each LLM, or JSON."""
    if as_json:
        print_json(found)
        return
    for name, figures in found["llms"].items():
        columns, rows = table(figures, found["latents"])
        print_table(columns, rows, title=f"{name}, {figures['questions']} questions, 95 % intervals")
        message(f"gap closed {figures['gap_closed']:.3f}   shuffle gap {figures['shuffle_gap']:.3f} nats/token")


def store(folder: Path, found: dict[str, Any]) -> None:
    """Put the figures into ``meta.json``, outside the fingerprint: measuring a checkpoint makes it no other one.

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
    atomic_write_json(folder / "meta.json", {**meta, "quality": found})
