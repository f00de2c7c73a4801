"""What the engine says about given tokens: greedy continuations of token prompts, and nats a token of answers.

Straight on the engine, without the runtime's loop: a second opinion about the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engines.base import F32, I64, Engine
from ..runtime.options import GenerateOptions
from ..runtime.pipeline import Context, Pipeline
from ..runtime.request import Sizes
from ..runtime.scheduler.rows import Rows


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
    """Mean nats a token of the answers ``golds`` after their prompts, one prompt at a time.

    The answer is fed token by token (teacher forcing): a space, then the answer, as training writes it.
    """
    total, count = 0.0, 0
    for context, question, gold in zip(contexts, questions, golds, strict=True):
        ids = pipe.tokenizer.encode(" " + gold)
        total += sum(_nats(pipe, context, question, ids))
        count += len(ids)
    return total / max(count, 1)


def embeddings(engine: Engine, ids: I64) -> F32:
    """Embeddings f32 [B,T,H] of token ids, no adapter rows among them."""
    rows = np.zeros((len(ids), 1, engine.bundle.manifest.llm.hidden_size), np.float32)
    return engine.splice(ids, np.full_like(ids, -1), rows)


def _nats(pipe: Pipeline, context: Context, question: str, answer: Sequence[int]) -> list[float]:
    engine, options = pipe.engine, GenerateOptions(max_new_tokens=len(answer) + 1)
    request = pipe.request(context, question, options, "quality")
    rows = Rows(engine)
    rows.open(1, _slots(engine, Sizes(engine).prompt(request) + options.max_new_tokens))
    rows.prefill([(0, request)])
    buffers = rows.buffers
    found = []
    for token in answer:
        scores = buffers.logits[0].astype(np.float64)
        found.append(float(np.logaddexp.reduce(scores) - scores[token]))
        buffers.feed(embeddings(engine, np.array([[token]], np.int64)))
        buffers.next_token[0] = token  # an engine may read either
        engine.decode(buffers)
    return found


def _slots(engine: Engine, positions: int) -> int:
    return engine.bundle.manifest.capacity or positions
