"""Held-out measurements: what the LLM answers from nothing, from some tokens, from latents and from the full text.

All kinds of rows share one set of questions and one way to ask; only what stands for the text differs. ``shuffled``
gives every question the latents of another text: where it scores like ``latents``, the latents are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.prompt import join
from ..core.scoring import best_f1, exact
from .data import Item
from .evaluation.generation import continue_greedily
from .evaluation.kinds import Kind, parse
from .evaluation.prefixes import Prefixes, prefixes
from .evaluation.protocol import Protocol
from .llm import KeyValues, LMWrapper
from .model import LatentModel, Scored
from .tree import Tree, build

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One row of the table, an entry for each question.

    Attributes:
        nll: f64 [N], mean nats per target token.
        first: bool [N], the first answer token was the most likely one.
        positions: int64 [N], prompt positions that the context took.
        top5: bool [N], it was among the five most likely.
        guess: int64 [N], the most likely first token.
        sizes: form -> f64 [N], bytes of what stood for the text.
        f1: f64 [N] or None where nothing was generated.
        exact: f64 [N] or None.
        texts: what was generated.
    """

    nll: F64
    first: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    top5: npt.NDArray[np.bool_]
    guess: npt.NDArray[np.int64]
    sizes: dict[str, F64] = field(default_factory=dict)
    f1: F64 | None = None
    exact: F64 | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _One:
    """One question, answered."""

    nll: float
    first: bool
    positions: int
    top5: bool
    guess: int
    sizes: dict[str, int]
    text: str


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
    protocol: Protocol | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Answer every question of ``items`` from one kind of prefix.

    Args:
        model: what makes the latents; in ``eval`` mode.
        llm: who answers.
        items: contexts with their questions.
        kind: a name as ``evaluation/kinds.py`` reads them.
        batch: contexts in one forward pass; the last one may hold one more.
        max_new_tokens: also generate greedily and score F1 and exact match; 0 does not generate.
        protocol: how to ask; default ``task-token``.
        progress: called with the number of contexts done.
    """
    own, asked = parse(kind), protocol or Protocol()
    order = sorted(range(len(items)), key=lambda i: _length(items[i]))
    parts: dict[int, list[_One]] = {}
    starts = list(range(0, len(order), batch))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        # One text alone would get its own latents back as ``shuffled``.
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        indices = order[start:end]
        found = _measure(model, llm, [items[i] for i in indices], own, asked, max_new_tokens)
        parts.update(zip(indices, found, strict=True))
        progress(len(parts))
    return _collect([one for index in range(len(items)) for one in parts[index]], items, max_new_tokens > 0)


def _length(item: Item) -> int:
    """Characters of a text and its questions: rows of one batch should be of one length, or most of it is padding."""
    return len(item.context) + sum(len(q.text) + len(q.answers[0]) for q in item.questions)


def _collect(flat: Sequence[_One], items: Sequence[Item], scored: bool) -> Answers:
    golds = [q.answers for item in items for q in item.questions]
    texts = tuple(one.text for one in flat)
    return Answers(
        np.array([one.nll for one in flat]),
        np.array([one.first for one in flat]),
        np.array([one.positions for one in flat]),
        np.array([one.top5 for one in flat]),
        np.array([one.guess for one in flat]),
        {form: np.array([float(one.sizes.get(form, 0)) for one in flat]) for form in flat[0].sizes},
        np.array([best_f1(t, gold) for t, gold in zip(texts, golds, strict=True)]) if scored else None,
        np.array([exact(t, gold) for t, gold in zip(texts, golds, strict=True)]) if scored else None,
        texts if scored else (),
    )


def _measure(
    model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: Kind, protocol: Protocol, max_new_tokens: int
) -> list[list[_One]]:
    found = prefixes(model, llm, items, kind)
    tree = ask(llm, found, kind, protocol, model.config.task_tokens)
    cache = KeyValues() if max_new_tokens else None
    scored = model.score(llm, tree, found.given, cache)
    guess = scored.logits[scored.rank == 0].argmax(-1)
    texts = []
    if cache is not None:
        texts = continue_greedily(llm, tree, found.given, cache, guess, max_new_tokens)
    answers = iter(_answers(scored, texts))
    out: list[list[_One]] = [[] for _ in items]
    for context in found.contexts:
        for _ in context.questions:
            nll, first, top5, token, text = next(answers)
            out[context.item].append(
                _One(
                    nll,
                    first,
                    len(context.segment) + found.given.beside(len(context.segment)) + len(context.verbatim),
                    top5,
                    token,
                    context.sizes,
                    text,
                )
            )
    return out


def ask(llm: LMWrapper, found: Prefixes, kind: Kind, protocol: Protocol, task_tokens: int) -> Tree:
    """The prompts of one batch with their gold answers, a row for each context, a branch for each question."""
    opening = protocol.opening(llm)
    starts = [join([llm.special.bos, opening, found.given.front, context.segment]) for context in found.contexts]
    branches = [
        [protocol.branch(llm, q, kind, found.capacity, task_tokens, context.verbatim) for q in context.questions]
        for context in found.contexts
    ]
    return build(starts, branches).to(llm.model.device)


def _answers(scored: Scored, texts: Sequence[str]) -> list[tuple[float, bool, bool, int, str]]:
    """NLL, top-1, top-5, most likely first token and text of each branch, in order."""
    nll = F.cross_entropy(scored.logits, scored.labels, reduction="none").double().tolist()
    starts = (scored.rank == 0).nonzero()[:, 0]
    five = scored.logits[starts].topk(min(5, scored.logits.shape[-1]), dim=-1).indices
    hits = (five == scored.labels[starts, None]).tolist()
    ends = [*starts[1:].tolist(), len(nll)]
    return [
        (float(np.mean(nll[a:b])), hit[0], any(hit), guess, texts[n] if texts else "")
        for n, (a, b, hit, guess) in enumerate(zip(starts.tolist(), ends, hits, five[:, 0].tolist(), strict=True))
    ]
