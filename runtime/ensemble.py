"""Several LLMs answer from the same frame: each proposes, then one proposal is chosen.

    best       the proposal with the highest mean log-likelihood per token under the LLM that made it
    majority   the proposal most LLMs made, compared without case and outer white space; ties as ``joint``
    joint      the proposal with the highest sum over all LLMs of its mean log-likelihood per token

The formula of ``joint`` is the evaluation's: means, because the LLMs cut the same answer into different numbers of
tokens; a proposal is scored as the LLM would write it, with a space before and its end token behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, LatentWireError
from .answer import Answer
from .choices import Rule
from .options import GenerateOptions
from .pipeline import Context, Pipeline
from .surprise import surprise

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chosen(Answer):
    """What several LLMs said together. The counts are sums over all of them, but ``context_positions``.

    Attributes:
        proposals: each LLM's name and what it said, in the order of the pipelines.
        scores: nats, by LLM and then by distinct proposal, in the order they came, without empty ones: mean
            log-likelihood per token.
    """

    proposals: tuple[tuple[str, str], ...]
    scores: tuple[tuple[float, ...], ...]


class Ensemble:
    """Pipelines of several LLMs that answer as one.

    Args:
        pipes: at least two, open; whoever opened them closes them.
        rule: how one proposal is chosen.

    Raises:
        InputError: 2111 fewer than two pipelines, or an unknown rule.
    """

    def __init__(self, pipes: Sequence[Pipeline], rule: Rule = "joint") -> None:
        if len(pipes) < 2 or rule not in get_args(Rule):
            expected = f"expected at least 2 LLMs and one of {', '.join(get_args(Rule))}, got {len(pipes)} and {rule!r}"
            raise InputError(2111, "no such ensemble", where="option ensemble", expected=expected)
        self._pipes, self._rule = tuple(pipes), rule

    def answers(
        self,
        contexts: Sequence[Context],
        prompts: Sequence[str],
        options: GenerateOptions,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer | LatentWireError]:
        """As ``Pipeline.answers``: every LLM answers all, then each question's proposals are scored by all.

        The error of the first LLM that has one stands in the place of a question.
        """
        said = [pipe.answers(contexts, prompts, options) for pipe in self._pipes]
        found: list[Answer | LatentWireError] = []
        for context, prompt, proposals in zip(contexts, prompts, zip(*said, strict=True), strict=True):
            try:
                found.append(self._chosen(context, prompt, proposals))
            except LatentWireError as e:
                found.append(e)
            done(1)
        return found

    def _chosen(self, context: Context, prompt: str, proposals: Sequence[Answer | LatentWireError]) -> Chosen:
        answers = [p for p in proposals if not isinstance(p, LatentWireError)]
        for proposal in proposals:
            if isinstance(proposal, LatentWireError):
                raise proposal
        texts = [a.text for a in answers]
        distinct = list(dict.fromkeys(t for t in texts if t))
        scores = np.array([log_likelihoods(pipe, context, prompt, distinct) for pipe in self._pipes], np.float64)
        text = distinct[choose(self._rule, texts, distinct, scores)] if distinct else ""
        return Chosen(
            text,
            answers[texts.index(text)].stop,
            sum(a.new_tokens for a in answers),
            sum(a.prompt_positions for a in answers),
            answers[0].context_positions,
            tuple((pipe.bundle.manifest.llm.name, t) for pipe, t in zip(self._pipes, texts, strict=True)),
            tuple(tuple(map(float, row)) for row in scores),
        )


def choose(rule: Rule, proposals: Sequence[str], distinct: Sequence[str], scores: F64) -> int:
    """Index of the chosen one of ``distinct``; ``scores`` float64 [LLMs, options]. The first wins a tie."""
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
        FrameError, ModelError, RowError: as ``Pipeline.request``. LatentError: 3001, 3002 as ``Engine.prefill``.
    """
    if not answers:
        return []
    targets = [[*pipe.tokenizer.encode(f" {a}"), *pipe.bundle.manifest.llm.eos[:1]] for a in answers]
    options = GenerateOptions(max_new_tokens=max(map(len, targets)))
    request = pipe.request(context, question, options, "question")
    return [-float(nats.mean()) for nats in surprise(pipe.engine, [request] * len(targets), targets)]
