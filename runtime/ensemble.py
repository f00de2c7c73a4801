"""Several LLMs answer from the same frame: each proposes, then one proposal is chosen.

    best       the proposal with the highest mean log-likelihood per token under the LLM that made it
    majority   the proposal most LLMs made, compared without case and outer white space; ties as ``joint``
    joint      the proposal with the highest sum over all LLMs of its mean log-likelihood per token

The formula of ``joint`` is the evaluation's: means, because the LLMs cut the same answer into different numbers of
tokens; a proposal is scored as the LLM would write it, with a space before and its end token behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, LatentError, LatentWireError
from .answer import Answer
from .choices import Rule
from .options import GenerateOptions
from .pipeline import Context, Pipeline
from .request import Request
from .surprise import surprise

F64 = npt.NDArray[np.float64]

GROUP: Final = 64
"""Questions whose proposals are scored together."""


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
        found: list[Answer | LatentWireError] = []
        for start in range(0, len(contexts), GROUP):
            part = slice(start, start + GROUP)
            said = zip(*(pipe.answers(contexts[part], prompts[part], options) for pipe in self._pipes), strict=True)
            found += self._chosen(contexts[part], prompts[part], list(said))
            done(len(found) - start)
        return found

    def stream(
        self, context: Context, prompt: str, options: GenerateOptions
    ) -> Iterator[tuple[str, str | Answer] | Chosen]:
        """One question: each LLM's name with the pieces of its answer as they come and the whole answer behind them,
        LLM after LLM; then the choice.

        Raises:
            FrameError, ModelError, RowError: as ``Pipeline.request``. LatentError: 3001, 3002.
        """
        said: list[Answer] = []
        for pipe in self._pipes:
            for piece in pipe.pieces(context, prompt, options):
                said += [piece] if isinstance(piece, Answer) else []
                yield pipe.bundle.manifest.llm.name, piece
        (chosen,) = self._chosen([context], [prompt], [said])
        if isinstance(chosen, LatentWireError):
            raise chosen
        yield chosen

    def _chosen(
        self, contexts: Sequence[Context], prompts: Sequence[str], said: Sequence[Sequence[Answer | LatentWireError]]
    ) -> list[Chosen | LatentWireError]:
        texts = [tuple(a.text for a in row if isinstance(a, Answer)) for row in said]
        # Where one LLM failed there is nothing to choose from.
        distinct = [tuple(dict.fromkeys(t for t in own if t)) if len(own) == len(self._pipes) else () for own in texts]
        scores = zip(*(log_likelihoods(pipe, contexts, prompts, distinct) for pipe in self._pipes), strict=True)
        return [self._one(*row) for row in zip(said, texts, distinct, scores, strict=True)]

    def _one(
        self,
        said: Sequence[Answer | LatentWireError],
        texts: Sequence[str],
        distinct: Sequence[str],
        scores: Sequence[list[float] | LatentWireError],
    ) -> Chosen | LatentWireError:
        for found in (*said, *scores):
            if isinstance(found, LatentWireError):
                return found
        answers = [a for a in said if isinstance(a, Answer)]
        known = [row for row in scores if isinstance(row, list)]
        text = distinct[choose(self._rule, texts, distinct, np.array(known, np.float64))] if distinct else ""
        return Chosen(
            text,
            answers[texts.index(text)].stop,
            sum(a.new_tokens for a in answers),
            sum(a.prompt_positions for a in answers),
            answers[0].context_positions,
            tuple((pipe.bundle.manifest.llm.name, t) for pipe, t in zip(self._pipes, texts, strict=True)),
            tuple(map(tuple, known)),
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


def log_likelihoods(
    pipe: Pipeline, contexts: Sequence[Context], questions: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[list[float] | LatentWireError]:
    """Mean log-likelihood of each answer's tokens, its end included, nats a token.

    Args:
        pipe: whose LLM scores.
        contexts, questions: one each for every row.
        answers: any number a row; not empty.

    Returns:
        for each row a figure for each of its answers, or the error of its prompt: FrameError, ModelError and RowError
        as ``Pipeline.request``; LatentError 3001, 3002 as ``Engine.prefill``, and 3001 for a figure that is not finite.
    """
    rows = [_asked(pipe, *row) for row in zip(contexts, questions, answers, strict=True)]
    flat = [one for row in rows if isinstance(row, list) for one in row]
    try:
        nats = iter(_means(pipe, flat))
    except LatentError as e:
        if len(rows) == 1:
            return [e]
        # One bad row must not take the others with it.
        return [log_likelihoods(pipe, [c], [q], [a])[0] for c, q, a in zip(contexts, questions, answers, strict=True)]
    return [[next(nats) for _ in row] if isinstance(row, list) else row for row in rows]


def _asked(
    pipe: Pipeline, context: Context, question: str, answers: Sequence[str]
) -> list[tuple[Request, list[int]]] | LatentWireError:
    """For each answer the prompt and the tokens that the LLM would write."""
    if not answers:
        return []
    targets = [[*pipe.tokenizer.encode(f" {a}"), *pipe.bundle.manifest.llm.eos[:1]] for a in answers]
    options = GenerateOptions(max_new_tokens=max(map(len, targets)))
    try:
        request = pipe.request(context, question, options, "question")
    except LatentWireError as e:
        return e
    return [(request, target) for target in targets]


def _means(pipe: Pipeline, asked: Sequence[tuple[Request, list[int]]]) -> list[float]:
    means = [-float(n.mean()) for n in surprise(pipe.engine, [r for r, _ in asked], [t for _, t in asked])]
    if not np.isfinite(means).all():
        raise LatentError(3001, "score of an answer is not finite", where=pipe.bundle.manifest.llm.name)
    return means
