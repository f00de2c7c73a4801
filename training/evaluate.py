"""Held-out measurements: what the LLM answers from nothing, from first tokens, from latents and from the full text.

All kinds share one prompt, one set of task rows and one set of questions; only the prefix differs. ``shuffled``
gives every question the latents of another text: where it scores like ``latents``, the latents are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.prompt import join
from ..core.scoring import best_f1, exact
from .batch import answer_branch, pad, task_range
from .data import Item
from .llm import LMWrapper
from .model import LatentModel
from .tree import build

KINDS = ("none", "first", "latents", "shuffled", "full")


@dataclass(frozen=True)
class Answers:
    """One row per question.

    Attributes:
        nll: f64 [N], mean nats per answer token (closing EOS included).
        first: bool [N], the first answer token was the most likely one.
        positions: int64 [N], prompt positions that the context took.
        f1: f64 [N] or None where nothing was generated.
        exact: f64 [N] or None.
        texts: what was generated.
    """

    nll: np.ndarray[tuple[int], np.dtype[np.float64]]
    first: np.ndarray[tuple[int], np.dtype[np.bool_]]
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    f1: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
    exact: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
    texts: tuple[str, ...] = ()


def pick(items: Sequence[Item], questions: int, seed: int = 0) -> list[Item]:
    """Whole contexts in a seeded order until ``questions`` questions are reached, the last one cut to fit.

    Raises:
        InputError: 2104 fewer than two contexts, so that ``shuffled`` has no other text.
    """
    out: list[Item] = []
    left = questions
    for index in np.random.default_rng(seed).permutation(len(items)):
        item = items[index]
        if left <= 0:
            break
        out.append(Item(item.context, item.questions[:left]))
        left -= len(out[-1].questions)
    if len(out) < 2:
        raise InputError(
            2104,
            "too few held-out contexts",
            where=f"{questions} questions of {len(items)} contexts",
            expected=f"expected at least 2 contexts, got {len(out)}",
            fix="more held-out data, or more questions",
        )
    return out


@torch.no_grad()
def measure(
    model: LatentModel,
    llm: LMWrapper,
    items: Sequence[Item],
    kind: str,
    *,
    batch: int = 8,
    max_new_tokens: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Answer every question of ``items`` from one kind of prefix.

    Args:
        kind: one of ``KINDS``.
        batch: contexts in one forward pass; the last one may hold one more.
        max_new_tokens: also generate greedily and score F1 and exact match; 0 does not generate.
        progress: called with the number of contexts done.
    """
    order = sorted(range(len(items)), key=lambda i: len(items[i].context))
    parts: dict[int, list[tuple[float, bool, int, str]]] = {}
    starts = list(range(0, len(order), batch))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        # One text alone would get its own latents back as ``shuffled``.
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        indices = order[start:end]
        for index, rows in zip(
            indices, _measure(model, llm, [items[i] for i in indices], kind, max_new_tokens), strict=True
        ):
            parts[index] = rows
        progress(len(parts))
    flat = [row for index in range(len(items)) for row in parts[index]]
    golds = [q.answers for item in items for q in item.questions]
    texts = tuple(row[3] for row in flat)
    scored = max_new_tokens > 0
    return Answers(
        np.array([row[0] for row in flat]),
        np.array([row[1] for row in flat]),
        np.array([row[2] for row in flat]),
        np.array([best_f1(t, gold) for t, gold in zip(texts, golds, strict=True)]) if scored else None,
        np.array([exact(t, gold) for t, gold in zip(texts, golds, strict=True)]) if scored else None,
        texts,
    )


def _measure(
    model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: str, max_new_tokens: int
) -> list[list[tuple[float, bool, int, str]]]:
    config = model.config
    device = llm.model.device
    capacity = config.latent_len if kind in ("latents", "shuffled") else 0
    prefixes, rows = _prefixes(model, llm, items, kind)
    answer = task_range("answer", capacity, config.task_tokens)
    branches = [[answer_branch(llm, q, q.answers[0], answer) for q in item.questions] for item in items]
    tree = build([join([llm.special.bos, prefix]) for prefix in prefixes], branches).to(device)
    scored = model.score(llm, tree, rows)
    nll = F.cross_entropy(scored.logits, scored.labels, reduction="none")
    hit = scored.logits.argmax(-1) == scored.labels
    texts = _generate(llm, prefixes, branches, rows, max_new_tokens)
    out: list[list[tuple[float, bool, int, str]]] = []
    position = number = 0
    for prefix, own in zip(prefixes, branches, strict=True):
        out.append([])
        for branch in own:
            part = slice(position, position + len(branch.target))
            text = texts[number] if texts else ""
            out[-1].append((float(nll[part].mean()), bool(hit[part.start]), len(prefix), text))
            position, number = part.stop, number + 1
    return out


def _prefixes(
    model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: str
) -> tuple[list[Sequence[int] | range], Tensor]:
    config, device = model.config, llm.model.device
    if kind in ("latents", "shuffled"):
        input_ids, lengths = pad([model.source.encode(i.context)[: config.max_tokens] for i in items])
        if kind == "shuffled":
            input_ids, lengths = input_ids.roll(1, 0), lengths.roll(1, 0)
        z = model.encode(input_ids.to(device), lengths.to(device))
        rows: Tensor = model.adapter(llm)(z)
        return [range(min(config.latent_len, n)) for n in lengths.tolist()], rows
    most = {"none": 0, "first": config.latent_len, "full": config.max_tokens}[kind]
    return [llm.encode(i.context)[:most] for i in items], model.task_rows(llm, len(items))


def _generate(
    llm: LMWrapper,
    prefixes: Sequence[Sequence[int] | range],
    branches: Sequence[Sequence[object]],
    rows: Tensor,
    most: int,
) -> list[str]:
    if not most:
        return []
    embeds: list[Tensor] = []
    for b, (prefix, own) in enumerate(zip(prefixes, branches, strict=True)):
        start = join([llm.special.bos, prefix])
        for branch in own:
            prompt = branch.prompt  # type: ignore[attr-defined]
            ids, index = (np.concatenate([getattr(start, n), getattr(prompt, n)]) for n in ("ids", "row_index"))
            tensors = [torch.from_numpy(a)[None].to(rows.device) for a in (ids, index)]
            embeds.append(llm.splice(tensors[0], tensors[1], rows[b : b + 1])[0])
    out: list[str] = []
    for at in range(0, len(embeds), 32):
        out += [llm.tokenizer.decode(ids).split("\n")[0].strip() for ids in llm.generate(embeds[at : at + 32], most)]
    return out
