"""The quality table: every kind of prefix on the same held-out questions, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.console import track
from ..core.scoring import interval
from .data import Item
from .evaluate import KINDS, Answers, measure
from .model import LatentModel

NAMES = {
    "none": "no context",
    "first": "first {M} tokens of the text",
    "shuffled": "latents of another text",
    "latents": "latents",
    "full": "full text",
}
"""What each row of the table is called; also its order."""


def quality(model: LatentModel, items: Sequence[Item], *, max_new_tokens: int = 16, batch: int = 8) -> dict[str, Any]:
    """Measure every LLM of the model.

    Args:
        model: encoder, adapters, frozen LLMs.
        items: held-out contexts with their questions.
        max_new_tokens: greedy tokens for F1 and exact match; 0 leaves those out.
        batch: contexts in one pass.

    Returns:
        by LLM: ``rows`` (kind -> figures, each with a 95 % bootstrap interval under ``*_ci``), ``gap_closed`` on
        NLL (0 = no context, 1 = full text) and ``shuffle_gap`` in nats a token.
    """
    out: dict[str, Any] = {}
    for llm in model.llms:
        with track(f"eval {llm.name}", total=len(items) * len(KINDS), unit="text") as progress:
            rows = {}
            for kind in NAMES:
                done = 0

                def advance(now: int) -> None:
                    nonlocal done
                    progress.advance(now - done)
                    done = now

                answers = measure(model, llm, items, kind, batch=batch, max_new_tokens=max_new_tokens, progress=advance)
                rows[kind] = figures(answers)
        out[llm.name] = {"rows": rows, **summary(rows), "questions": sum(len(i.questions) for i in items)}
    return out


def figures(answers: Answers) -> dict[str, Any]:
    """Means and intervals of one row."""
    row: dict[str, Any] = {"context_positions": round(float(answers.positions.mean()), 1)}
    columns: dict[str, Any] = {"nll": answers.nll, "first_token": answers.first.astype(float)}
    columns |= {"f1": answers.f1, "em": answers.exact} if answers.f1 is not None else {}
    for name, values in columns.items():
        row[name] = round(float(np.mean(values)), 4)
        row[f"{name}_ci"] = [round(v, 4) for v in interval(values)]
    return row


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Gap closed and shuffle gap from the rows; whether the latents beat no context and the first tokens."""
    nll = {kind: row["nll"] for kind, row in rows.items()}
    return {
        "gap_closed": round((nll["none"] - nll["latents"]) / (nll["none"] - nll["full"]), 4),
        "shuffle_gap": round(nll["shuffled"] - nll["latents"], 4),
        "beats_none": nll["latents"] < nll["none"],
        "beats_first": nll["latents"] < nll["first"],
    }


def table(of_llm: dict[str, Any], latents: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for ``print_table``."""
    columns = ["the LLM sees", "context positions", "NLL (nats/token)", "first token", "F1", "EM"]
    rows = []
    for kind, name in NAMES.items():
        row = of_llm["rows"][kind]
        cells = [name.format(M=latents), f"{row['context_positions']:g}"]
        for column in ("nll", "first_token", "f1", "em"):
            cells.append(
                f"{row[column]:.3f} [{row[column + '_ci'][0]:.3f}, {row[column + '_ci'][1]:.3f}]"
                if column in row
                else "-"
            )
        rows.append(cells)
    return columns, rows
