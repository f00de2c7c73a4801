"""Several LLMs answer from the same frame: each proposes, then one proposal is chosen.

    best       the proposal with the highest mean log-likelihood per token under the LLM that made it
    majority   the proposal most LLMs made, compared without case and outer white space; ties as ``joint``
    joint      the proposal with the highest sum over all LLMs of its mean log-likelihood per token

The formula of ``joint`` is the evaluation's: means, because the LLMs cut the same answer into different numbers of
tokens; a proposal is scored as the LLM would write it, with a space before and its end token behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..core.errors import InputError, LatentWireError
from ..engines.base import F32
from .options import GenerateOptions
from .pipeline import Context, Pipeline
from .prompts.answer import embed
from .prompts.build import build

Rule = Literal["joint", "majority", "best"]


@dataclass(frozen=True)
class Choice:
    """What the LLMs said together.

    Attributes:
        text: the chosen proposal.
        proposals: one per LLM, in the order of the pipelines.
        scores: nats, float32 [LLMs, options]: mean log-likelihood per token of each distinct proposal.
        options: the distinct proposals that are not empty, in the order they came.
    """

    text: str
    proposals: tuple[str, ...]
    options: tuple[str, ...]
    scores: F32


def answer_together(
    pipes: Sequence[Pipeline],
    context: Context,
    question: str,
    rule: Rule = "joint",
    options: GenerateOptions | None = None,
) -> Choice:
    """One question about one frame (or text), asked of every pipeline.

    Raises:
        InputError: 2111 fewer than two pipelines, or an unknown rule.
        LatentWireError: as ``Pipeline.answers`` and ``build``, of the first LLM that fails.
    """
    if len(pipes) < 2 or rule not in get_args(Rule):
        expected = f"expected at least 2 LLMs and one of {', '.join(get_args(Rule))}, got {len(pipes)} and {rule!r}"
        raise InputError(2111, "no such ensemble", where="option ensemble", expected=expected)
    proposals: list[str] = []
    for pipe in pipes:
        (found,) = pipe.answers([context], [question], options or GenerateOptions())
        if isinstance(found, LatentWireError):
            raise found
        proposals.append(found.text)
    distinct = list(dict.fromkeys(p for p in proposals if p))
    scores = np.array([log_likelihoods(pipe, context, question, distinct) for pipe in pipes], np.float32)
    text = distinct[choose(rule, proposals, distinct, scores)] if distinct else ""
    return Choice(text, tuple(proposals), tuple(distinct), scores)


def choose(rule: Rule, proposals: Sequence[str], distinct: Sequence[str], scores: F32) -> int:
    """Index of the chosen one of ``distinct``; ``scores`` float32 [LLMs, options]. The first wins a tie."""
    joint = scores.sum(axis=0)
    if rule == "joint":
        return int(np.argmax(joint))
    if rule == "best":
        own = [max(s[i] for s, p in zip(scores, proposals, strict=True) if p == d) for i, d in enumerate(distinct)]
        return int(np.argmax(own))
    votes = Counter(p.strip().casefold() for p in proposals)
    return max(range(len(distinct)), key=lambda i: (votes[distinct[i].strip().casefold()], float(joint[i]), -i))


def log_likelihoods(pipe: Pipeline, context: Context, question: str, answers: Sequence[str]) -> list[float]:
    """Mean log-likelihood of each answer's tokens, its end included, nats a token.

    Raises:
        LatentError: 3001, 3002 as ``Engine.prefill``.
        ModelError: 3225 as ``build``.
    """
    if not answers:
        return []
    llm, engine = pipe.bundle.manifest.llm, pipe.engine
    targets = [[*pipe.tokenizer.encode(f" {a}"), *llm.eos[:1]] for a in answers]
    embeds, lengths = embed(engine, [build(pipe, context, question)] * len(answers))
    longest = max(map(len, targets))
    buffers = engine.alloc(len(answers), pipe.bundle.manifest.capacity or embeds.shape[1] + longest)
    engine.prefill(buffers, embeds, lengths)
    sums = np.zeros(len(answers))
    none = np.zeros((len(answers), 1, llm.hidden_size), np.float32)
    for step in range(longest):
        logits = buffers.logits[: len(answers)].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        tokens = np.array([t[min(step, len(t) - 1)] for t in targets], np.int64)
        sums += np.where([step < len(t) for t in targets], logs[np.arange(len(answers)), tokens], 0)
        if step + 1 < longest:
            buffers.next_token[: len(answers)] = tokens
            buffers.feed(engine.splice(tokens[:, None], np.full((len(answers), 1), -1, np.int64), none))
            engine.decode(buffers)
    return [float(s / len(t)) for s, t in zip(sums, targets, strict=True)]
