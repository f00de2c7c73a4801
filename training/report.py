"""``latentwire eval``: measure a checkpoint, print the table, keep the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.console import message, print_json, print_table
from ..core.files import atomic_write_json, sha256_file
from .building import open_checkpoint
from .data import read_questions
from .evaluate import pick
from .quality import quality, table


def report(
    checkpoint: str,
    data: Sequence[Path],
    questions: int,
    llms: tuple[str, ...],
    max_new_tokens: int,
    precision: str,
    device: str,
    out: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    """Measure and show.

    Raises:
        InputError: 2104, 2107 from the data; ModelError from the checkpoint.
    """
    folder = Path(checkpoint)
    if checkpoint == "reference" and not folder.is_dir():
        folder = Path(__file__).resolve().parent.parent / "reference"
    # Data first: it is read in a second, and a wrong line should not cost the loading of a model.
    items = pick(read_questions([str(path) for path in data]), questions)
    model, meta = open_checkpoint(folder, device, precision, llms)
    found = {
        "checkpoint": meta["encoder"]["fingerprint"],
        "step": meta.get("step"),
        "data": {path.name: sha256_file(path) for path in data},
        "questions": sum(len(item.questions) for item in items),
        "contexts": len(items),
        "protocol": {
            "prompt": "BOS, context, task tokens, question, 'Answer:'",
            "max_new_tokens": max_new_tokens,
            "precision": precision,
            "seed": 0,
        },
        "latents": model.config.latent_len,
        "llms": quality(model, items, max_new_tokens=max_new_tokens),
    }
    if record:
        # Quality stands outside the fingerprint: measuring a checkpoint does not make it another one.
        atomic_write_json(folder / "meta.json", {**meta, "quality": found})
    if out:
        atomic_write_json(out, found)
    if as_json:
        print_json(found)
        return
    for name, figures in found["llms"].items():
        columns, rows = table(figures, model.config.latent_len)
        print_table(columns, rows, title=f"{name}, {figures['questions']} questions, 95 % intervals")
        message(f"gap closed {figures['gap_closed']:.3f}   shuffle gap {figures['shuffle_gap']:.3f} nats/token")
