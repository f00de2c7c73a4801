"""What the engine says about given tokens: greedy continuations of token prompts, and nats a token of answers.

Continuations come straight from the engine, without the runtime's loop: a second opinion about the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engines.base import Engine
from ..runtime.options import GenerateOptions
from ..runtime.pipeline import Context, Pipeline
from ..runtime.splice import embeddings
from ..runtime.surprise import surprise


def greedy(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int, batch: int) -> list[list[int]]:
    """Greedy tokens after each prompt of token ids; end tokens do not end it."""
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        lengths = np.array([len(prompts[i]) for i in part], np.int64)
        ids = np.full((len(part), int(lengths.max())), engine.bundle.manifest.llm.pad, np.int64)
        for row, index in enumerate(part):
            ids[row, : lengths[row]] = prompts[index]
        buffers = engine.alloc(len(part), _slots(engine, ids.shape[1] + new_tokens))
        engine.prefill(buffers, embeddings(engine, ids), lengths)
        for step in range(new_tokens):
            if step:
                engine.decode(buffers)
            for row, index in enumerate(part):
                out[index].append(int(buffers.next_token[row]))
    return out


def answer_nll(pipe: Pipeline, contexts: Sequence[Context], questions: Sequence[str], golds: Sequence[str]) -> float:
    """Mean nats a token of the answers ``golds`` after their prompts.

    The answer is fed token by token (teacher forcing): a space, then the answer, as training writes it.
    """
    targets = [pipe.tokenizer.encode(" " + gold) for gold in golds]
    requests = [
        pipe.request(context, question, GenerateOptions(max_new_tokens=len(target) + 1), "quality")
        for context, question, target in zip(contexts, questions, targets, strict=True)
    ]
    nats = surprise(pipe.engine, requests, targets)
    return sum(float(one.sum()) for one in nats) / max(sum(map(len, nats)), 1)


def _slots(engine: Engine, positions: int) -> int:
    return engine.bundle.manifest.capacity or positions
