"""Token prompts through any engine: what the gates run, and what they keep of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..engines.base import F32, I64, Engine
from ..engines.buffers import Buffers

SLACK: Final = 4
"""Cache slots more than needed, so that a write too far lands in the cache and shows in the numbers."""

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Run:
    """A few steps of a batch.

    Attributes:
        logits: float32 [n,B,V], after the prompt and after each further step.
        tokens: int64 [B,n], greedy.
        hidden: float32 [n,L+1,B,H], states of the last true position; NaN where unknown, None without a probe.
    """

    logits: F32
    tokens: I64
    hidden: F32 | None = None

    def row(self, b: int) -> Run:
        """The same of one row."""
        hidden = None if self.hidden is None else self.hidden[:, :, b : b + 1]
        return Run(self.logits[:, b : b + 1], self.tokens[b : b + 1], hidden)

    def until(self, steps: int) -> Run:
        """The first steps."""
        hidden = None if self.hidden is None else self.hidden[:steps]
        return Run(self.logits[:steps], self.tokens[:, :steps], hidden)


def _hidden(runs: Sequence[Run], axis: int) -> F32 | None:
    parts = [r.hidden for r in runs if r.hidden is not None]
    return np.concatenate(parts, axis) if len(parts) == len(runs) else None


def beside(runs: Sequence[Run]) -> Run:
    """Runs of equal steps as rows of one."""
    logits, tokens = [r.logits for r in runs], [r.tokens for r in runs]
    return Run(np.concatenate(logits, axis=1), np.concatenate(tokens, axis=0), _hidden(runs, 2))


def after(runs: Sequence[Run]) -> Run:
    """Runs of equal rows as steps of one."""
    logits, tokens = [r.logits for r in runs], [r.tokens for r in runs]
    return Run(np.concatenate(logits, axis=0), np.concatenate(tokens, axis=1), _hidden(runs, 0))


def lengths_of(prompts: Prompts) -> I64:
    """Int64 [B]."""
    return np.array([len(p) for p in prompts], np.int64)


def embed(engine: Engine, prompts: Prompts) -> F32:
    """Token prompts as right-padded embeddings [B,T,H], through the splice graph."""
    size = max(len(p) for p in prompts)
    ids = np.array([[*p, *[0] * (size - len(p))] for p in prompts], np.int64)
    none = np.full(ids.shape, -1, np.int64)
    return engine.splice(ids, none, np.zeros((len(ids), 1, engine.bundle.manifest.llm.hidden_size), np.float32))


def allocated(engine: Engine, prompts: Prompts, steps: int) -> Buffers:
    """Buffers for the prompts and ``steps`` tokens after them, with a few slots more."""
    return engine.alloc(len(prompts), max(len(p) for p in prompts) + steps + SLACK)


def prefilled(engine: Engine, prompts: Prompts, steps: int) -> Buffers:
    """Buffers after the prompts, with room for ``steps`` tokens."""
    buffers = allocated(engine, prompts, steps)
    engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
    return buffers


def greedy(engine: Engine, prompts: Prompts, steps: int) -> I64:
    """Greedy tokens [B,steps] of token prompts."""
    return continued(engine, prefilled(engine, prompts, steps), steps)


def continued(engine: Engine, buffers: Buffers, steps: int) -> I64:
    """The token that stands in ``buffers`` and the ``steps - 1`` after it [B,steps]; checks the guard words."""
    tokens = [np.array(buffers.next_token)]
    for _ in range(steps - 1):
        engine.decode(buffers)
        tokens.append(np.array(buffers.next_token))
    buffers.check_guards()
    return np.stack(tokens, axis=1)


def run(engine: Engine, prompts: Prompts, steps: int, buffers: Buffers | None = None, pad: int = 0) -> Run:
    """Prefill and ``steps - 1`` decodes.

    Args:
        engine: any.
        prompts: token ids.
        steps: tokens a row.
        buffers: memory to use; None: new.
        pad: positions of padding more than the batch needs, filled with large numbers.
    """
    buffers = buffers or allocated(engine, prompts, steps + pad)
    embeds = embed(engine, prompts)
    if pad:
        junk = np.random.default_rng(0).standard_normal((len(prompts), pad, embeds.shape[2])) * 50
        embeds = np.concatenate([embeds, junk.astype(np.float32)], axis=1)
    lengths = lengths_of(prompts)
    engine.prefill(buffers, embeds, lengths)
    return follow(engine, buffers, steps, lengths - 1)


def follow(engine: Engine, buffers: Buffers, steps: int, last: I64 | None = None) -> Run:
    """What stands in ``buffers`` and ``steps - 1`` decodes; ``last`` [B]: true last positions of the call before."""
    notes = [_note(engine, buffers, last)]
    for _ in range(steps - 1):
        engine.decode(buffers)
        notes.append(_note(engine, buffers, np.zeros(buffers.batch, np.int64)))
    return after(notes)


def _note(engine: Engine, buffers: Buffers, last: I64 | None) -> Run:
    logits, tokens = np.array(buffers.logits, np.float32)[None], np.array(buffers.next_token)[:, None]
    watch = getattr(engine, "hidden", None)
    if watch is None:
        return Run(logits, tokens)
    llm = engine.bundle.manifest.llm
    if last is None:
        nothing = np.full((1, llm.num_layers + 1, buffers.batch, llm.hidden_size), np.nan, np.float32)
        return Run(logits, tokens, nothing)
    states: F32 = watch(buffers)
    return Run(logits, tokens, states[:, np.arange(buffers.batch), last][None])


def feed(engine: Engine, buffers: Buffers, tokens: Sequence[int]) -> None:
    """One decode step with these tokens in place of the engine's own choices."""
    buffers.feed(embed(engine, [[t] for t in tokens]))
    engine.decode(buffers)
