"""The quality table: kinds of rows on the same held-out questions, with intervals over contexts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.console import track
from .config import Config
from .data import Item
from .evaluate import Answers, measure
from .evaluation.intervals import F64, Bootstrap, spread
from .evaluation.kinds import QUERY_AWARE, TITLES, parse
from .evaluation.protocol import EXTRA, Protocol
from .evaluation.store import Rows
from .model import LatentModel

SHORT = ("none", "first", "shuffled", "latents", "full")
"""What a summary needs."""
NAMED = re.compile(r"\d|\b[A-Z]")
"""An answer with a digit or a capital letter names an entity or a number."""


def all_rows(protocol: Protocol, config: Config) -> tuple[str, ...]:
    """Every row of a protocol's table: its own, the codecs, then the ends of the scale in the other prompt."""
    # Other encoders have no closed form to start from.
    own = [name for name in TITLES if name != "start" or config.encoder_type == "embed_layer"]
    codecs = ["latents_i8", *(["latents_fsq"] if config.fsq_profile else []), "latents_hybrid"]
    return (*own, *codecs, *EXTRA[protocol.name])


def quality(
    model: LatentModel,
    items: Sequence[Item],
    *,
    max_new_tokens: int = 16,
    batch: int = 8,
    kinds: Sequence[str] = SHORT,
    protocol: Protocol | None = None,
    rows: Rows | None = None,
) -> dict[str, Any]:
    """The figures of every LLM of the model; arguments as for ``answer_all``.

    Returns:
        by LLM: ``rows`` (kind -> figures, each with a 95 % interval under ``*_ci``), ``questions``, and what
        ``summary`` makes of them.
    """
    asked = protocol or Protocol()
    found = answer_all(model, items, max_new_tokens=max_new_tokens, batch=batch, kinds=kinds, protocol=asked, rows=rows)
    return {name: of_llm(answers, items, asked) for name, answers in found.items()}


def answer_all(
    model: LatentModel,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch: int,
    kinds: Sequence[str],
    protocol: Protocol,
    rows: Rows | None = None,
) -> dict[str, dict[str, Answers]]:
    """Ask every LLM of the model, from every kind of row.

    Args:
        model: encoder, adapters, frozen LLMs.
        items: held-out contexts with their questions.
        max_new_tokens: greedy tokens for F1 and exact match; 0 leaves those out.
        batch: contexts in one pass.
        kinds: rows to measure.
        protocol: how to ask.
        rows: where finished rows are kept; those it holds are not measured again.

    Returns:
        LLM -> kind -> answers.
    """
    kept = rows or Rows(None, {})
    out: dict[str, dict[str, Answers]] = {}
    for llm in model.llms:
        found = out[llm.name] = {}
        with track(f"eval {llm.name}", total=len(items) * len(kinds), unit="text") as progress:
            for kind in kinds:
                step = _Step(progress)
                answers = kept.get(llm.name, kind)
                if answers is None:
                    answers = measure(
                        model,
                        llm,
                        items,
                        kind,
                        batch=batch,
                        max_new_tokens=max_new_tokens,
                        protocol=protocol,
                        progress=step,
                    )
                    kept.add(llm.name, kind, answers)
                step(len(items))
                found[kind] = answers
    return out


class _Step:
    """Turns 'so many are done' into 'so many more'."""

    def __init__(self, progress: Any) -> None:
        self.progress, self.done = progress, 0

    def __call__(self, now: int) -> None:
        self.progress.advance(now - self.done)
        self.done = now


def of_llm(found: Mapping[str, Answers], items: Sequence[Item], protocol: Protocol) -> dict[str, Any]:
    """The figures of one LLM from its answers."""
    boot = Bootstrap([n for n, item in enumerate(items) for _ in item.questions])
    named = np.array([bool(NAMED.search(q.answers[0])) for item in items for q in item.questions])
    rows = {kind: figures(answers, boot, named) for kind, answers in found.items()}
    for kind, row in rows.items():
        row["query_aware"] = parse(kind).base in QUERY_AWARE
    return {"rows": rows, **summary(found, boot, protocol), "questions": len(named)}


def figures(answers: Answers, boot: Bootstrap, named: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Means and intervals of one row; ``named``: bool [N], the gold answer is an entity or a number."""
    row: dict[str, Any] = {
        "context_positions": round(float(answers.positions.mean()), 1),
        "bytes": {form: round(float(sizes.mean()), 1) for form, sizes in answers.sizes.items()},
        "distinct_first_tokens": distinct(answers.guess),
    }
    parts: list[tuple[str, F64 | None, npt.NDArray[np.bool_] | None]] = [
        ("nll", answers.nll, None),
        ("first_token", answers.first.astype(np.float64), None),
        ("first_token_top5", answers.top5.astype(np.float64), None),
        ("f1", answers.f1, None),
        ("em", answers.exact, None),
        ("f1_named", answers.f1, named),
        ("f1_other", answers.f1, ~named),
    ]
    for name, values, subset in parts:
        if values is None or (subset is not None and not subset.any()):
            continue
        row[name] = round(float(np.mean(values if subset is None else values[subset])), 4)
        row[f"{name}_ci"] = spread(boot.means(values, subset))
    return row


def distinct(guess: npt.NDArray[np.int64]) -> float:
    """Different first tokens per 100 questions, among the first 100: a collapsed model says 'the' to everything."""
    head = guess[:100]
    return round(100 * len(set(head.tolist())) / len(head), 1)


def summary(found: Mapping[str, Answers], boot: Bootstrap, protocol: Protocol) -> dict[str, Any]:
    """What the rows say together; a figure whose rows were not measured is left out.

    Returns:
        gap_closed: (NLL none - latents) / (none - full), all three with the task rows, so that answer format does
            not count; ``gap_closed_plain``: against none and full without them. None where full text is no better
            than no text, so that there is no gap.
        shuffle_gap: NLL shuffled - latents, nats a token.
        latents_minus_first: differences of the means of each column.
        f1_of_full, f1_of_first: ratios of F1; None where the other row is 0.
        latents_i8_kept, latents_fsq_kept, latents_hybrid_kept: F1 through the codec over F1 without.
    """
    out: dict[str, Any] = {}
    means = {kind: boot.means(a.nll) for kind, a in found.items()}
    nll = {kind: float(a.nll.mean()) for kind, a in found.items()}
    tuned, plain = ("", "_plain") if protocol.name == "task-token" else ("_tuned", "")
    for name, suffix in (("gap_closed", tuned), ("gap_closed_plain", plain)):
        none, full = f"none{suffix}", f"full{suffix}"
        if {none, full, "latents"} <= found.keys():
            gap = nll[none] - nll[full]
            out[name] = round((nll[none] - nll["latents"]) / gap, 4) if gap > 1e-6 else None
            gaps = means[none] - means[full]
            ratio = np.divide(means[none] - means["latents"], gaps, out=np.full(len(gaps), np.nan), where=gaps > 1e-6)
            out[f"{name}_ci"] = spread(ratio) if gap > 1e-6 else None
    if {"shuffled", "latents"} <= found.keys():
        out["shuffle_gap"] = round(nll["shuffled"] - nll["latents"], 4)
        out["shuffle_gap_ci"] = spread(means["shuffled"] - means["latents"])
    if {"none", "latents"} <= found.keys():
        out["beats_none"] = nll["latents"] < nll["none"]
    if {"first", "latents"} <= found.keys():
        out["beats_first"] = nll["latents"] < nll["first"]
        out["latents_minus_first"] = _differences(found["latents"], found["first"], boot)
    for other in ("full", "first"):
        if {other, "latents"} <= found.keys():
            out |= _ratio(f"f1_of_{other}", found["latents"].f1, found[other].f1, boot)
    for codec in ("latents_i8", "latents_fsq", "latents_hybrid"):
        if {codec, "latents"} <= found.keys():
            out |= _ratio(f"{codec}_kept", found[codec].f1, found["latents"].f1, boot)
    return out


def _differences(one: Answers, other: Answers, boot: Bootstrap) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, attribute in (("nll", "nll"), ("first_token", "first"), ("f1", "f1"), ("em", "exact")):
        a, b = getattr(one, attribute), getattr(other, attribute)
        if a is not None and b is not None:
            difference = a.astype(np.float64) - b.astype(np.float64)
            out[name] = round(float(difference.mean()), 4)
            out[f"{name}_ci"] = spread(boot.means(difference))
    return out


def _ratio(name: str, top: F64 | None, bottom: F64 | None, boot: Bootstrap) -> dict[str, Any]:
    if top is None or bottom is None:
        return {}
    if not bottom.mean() > 0:
        return {name: None, f"{name}_ci": None}
    below = boot.means(bottom)
    resampled = np.divide(boot.means(top), below, out=np.full(len(below), np.nan), where=below > 0)
    return {name: round(float(top.mean() / bottom.mean()), 4), f"{name}_ci": spread(resampled)}
