"""Two or more LLMs answer together: each proposes, all score every proposal, the best sum wins.

The score of a proposal is its mean log-likelihood per target token under each LLM, behind that LLM's own latents,
summed over the LLMs. Means, because the LLMs cut the same answer into different numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import InputError
from ...core.scoring import best_f1, exact
from ..data import Item, Question
from ..evaluate import Answers, measure
from ..model import LatentModel
from .intervals import F64, Bootstrap, spread
from .protocol import Protocol


def ensemble(
    model: LatentModel,
    items: Sequence[Item],
    proposed: Mapping[str, Answers],
    protocol: Protocol,
    *,
    kind: str = "latents",
    batch: int = 8,
) -> dict[str, Any]:
    """F1 and exact match of the joint choice, beside each LLM's own.

    Args:
        model: holds the LLMs.
        items: held-out contexts with their questions.
        proposed: LLM -> its generated answers, as ``measure`` gives them.
        protocol: how the proposals were asked for, and are scored.
        kind: the row they came from.
        batch: contexts in one pass.

    Returns:
        ``f1``, ``em``, their intervals; ``single``: LLM -> its own; ``minus_best``: difference to the better single
        LLM by F1; ``agreed``: share of questions with one proposal only; ``chosen``: LLM -> share that it won.

    Raises:
        InputError: 2111 fewer than two LLMs, or nothing was generated.
    """
    texts = {name: answers.texts for name, answers in proposed.items()}
    if len(model.llms) < 2 or not all(texts.values()):
        raise InputError(
            2111,
            "joint rescoring needs two LLMs that generate",
            expected=f"expected at least 2, got {', '.join(llm.name for llm in model.llms)}",
            fix="a checkpoint with several adapters, and --max-new-tokens above 0",
        )
    options = [tuple(dict.fromkeys(t for t in row if t)) for row in zip(*texts.values(), strict=True)]
    picked = [
        _best(own, score)
        for own, score in zip(options, _scores(model, items, options, protocol, kind, batch), strict=True)
    ]
    golds = [q.answers for item in items for q in item.questions]
    boot = Bootstrap([n for n, item in enumerate(items) for _ in item.questions])
    f1 = np.array([best_f1(t, gold) for t, gold in zip(picked, golds, strict=True)])
    em = np.array([exact(t, gold) for t, gold in zip(picked, golds, strict=True)])
    single = {name: a for name, a in proposed.items() if a.f1 is not None and a.exact is not None}
    best = max(single.values(), key=lambda a: float(_given(a.f1).mean()))
    return {
        "kind": kind,
        "f1": round(float(f1.mean()), 4),
        "f1_ci": spread(boot.means(f1)),
        "em": round(float(em.mean()), 4),
        "em_ci": spread(boot.means(em)),
        "single": {
            n: {"f1": round(float(_given(a.f1).mean()), 4), "em": round(float(_given(a.exact).mean()), 4)}
            for n, a in single.items()
        },
        "minus_best": round(float((f1 - _given(best.f1)).mean()), 4),
        "minus_best_ci": spread(boot.means(f1 - _given(best.f1))),
        "agreed": round(float(np.mean([len(own) <= 1 for own in options])), 4),
        "chosen": {
            n: round(float(np.mean([t == p for t, p in zip(own, picked, strict=True)])), 4) for n, own in texts.items()
        },
    }


def _given(values: F64 | None) -> F64:
    assert values is not None
    return values


def _best(options: Sequence[str], scores: Sequence[float]) -> str:
    return options[int(np.argmax(scores))] if options else ""


def _scores(
    model: LatentModel,
    items: Sequence[Item],
    options: Sequence[Sequence[str]],
    protocol: Protocol,
    kind: str,
    batch: int,
) -> list[list[float]]:
    """For each question, the score of each of its options: a proposal is asked for as if it were the gold answer."""
    numbers = iter(range(len(options)))
    asked: list[Item] = []
    where: list[int] = []
    for item in items:
        own = [(q, next(numbers)) for q in item.questions]
        asked.append(Item(item.context, tuple(Question(q.text, (text,), q.id) for q, n in own for text in options[n])))
        where += [n for _, n in own for _ in options[n]]
    # A text without proposals has nothing to score.
    known = [item for item in asked if item.questions]
    out: list[list[float]] = [[] for _ in options]
    if known:
        total = sum(measure(model, llm, known, kind, batch=batch, protocol=protocol).nll for llm in model.llms)
        for n, nats in zip(where, np.asarray(total).tolist(), strict=True):
            out[n].append(-nats)
    return out
