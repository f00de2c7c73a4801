"""Answers of a bundle on any engine, for measuring: the runtime's prompt and stop rules, nothing of its scheduling.

In: questions with contexts. Out: texts. A context longer than the encoder's window is cut, in both kinds; full text
also where the LLM's own window ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..core.prompt import Prompt, latent_prompt, question_ids, text_prompt
from ..engines.base import F32, Engine
from ..engines.checks import filled
from ..engines.cross import Cross
from ..engines.prefix import Prefix, latent_prefix, prefill_with, room

BATCH: Final = 8
KINDS: Final = ("latents", "full_text")


@dataclass(frozen=True)
class Question:
    """A question on a context, and every answer that counts as right."""

    context: str
    text: str
    answers: tuple[str, ...]


def answers(
    engine: Engine,
    questions: Sequence[Question],
    kind: str,
    most: int,
    done: Callable[[float], None] = lambda count: None,
) -> list[str]:
    """Greedy answers up to a line end, an end of text or ``most`` tokens, in the order of the questions.

    Args:
        engine: with all four graphs.
        questions: what is asked about what.
        kind: ``latents`` or ``full_text``.
        most: tokens of an answer.
        done: hears how many were answered.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].context))
    found = [""] * len(questions)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for index, text in zip(batch, _batch(engine, [questions[i] for i in batch], kind, most), strict=True):
            found[index] = text
        done(len(batch))
    return found


def _batch(engine: Engine, questions: Sequence[Question], kind: str, most: int) -> list[str]:
    from tokenizers import Tokenizer

    m = engine.bundle.manifest
    tokenizer = Tokenizer.from_file(str(engine.bundle.file("tokenizer.json")))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    asked = [question_ids(encode, q.text) for q in questions]
    task = m.adapter.task_tokens
    if kind == "latents":
        z = latents_of(engine, [q.context for q in questions])
        rows, counts, capacity = engine.adapt(z), filled(z).tolist(), z.shape[1]
        prefix = latent_prefix(engine, z, counts)
        cross: Cross = engine.cross(z) if "cross" in m.graphs else {}
        prompts = [
            latent_prompt(m.llm.bos, n, capacity, task, q, m.front_rows) for n, q in zip(counts, asked, strict=True)
        ]
    else:
        prefix, cross = None, {}
        rows, capacity = engine.adapt(np.zeros((len(questions), 1, m.encoder.d_z), np.float32)), 1
        # The question and the answer need their room in the LLM's window too.
        frame = len(text_prompt(m.llm.bos, [], capacity, task, [])) + max(map(len, asked)) + most
        window = max(0, min(m.encoder.max_tokens, (m.capacity or m.llm.max_positions) - frame))
        prompts = [
            text_prompt(m.llm.bos, encode(q.context)[:window], capacity, task, a)
            for q, a in zip(questions, asked, strict=True)
        ]
    return [
        tokenizer.decode(ids).split("\n")[0].strip() for ids in _generate(engine, prompts, rows, most, prefix, cross)
    ]


def latents_of(engine: Engine, contexts: Sequence[str]) -> F32:
    """Float32 [B,M,d_z]; a context longer than the encoder's window is cut."""
    from tokenizers import Tokenizer

    info = engine.bundle.manifest.encoder
    reader = Tokenizer.from_file(str(engine.bundle.file("encoder_tokenizer.json")))
    ids = [reader.encode(c, add_special_tokens=False).ids[: info.max_tokens] for c in contexts]
    lengths = np.array([len(i) for i in ids], np.int64)
    padded = np.array([[*i, *[0] * (int(lengths.max()) - len(i))] for i in ids], np.int64)
    return engine.encode(padded, lengths, info.latents)


def _generate(
    engine: Engine, prompts: Sequence[Prompt], rows: F32, most: int, prefix: Prefix | None, cross: Cross
) -> list[list[int]]:
    """New tokens of each prompt, up to the first end of text."""
    llm = engine.bundle.manifest.llm
    lengths = np.array([len(p) for p in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), llm.pad, np.int64)
    index = np.full_like(ids, -1)
    for b, prompt in enumerate(prompts):
        ids[b, : len(prompt)] = prompt.ids
        index[b, : len(prompt)] = prompt.row_index
    embeds = engine.splice(ids, index, rows)
    if prefix is None:
        buffers = engine.alloc(len(prompts), ids.shape[1] + most)
        buffers.cross = cross
        engine.prefill(buffers, embeds, lengths)
    else:
        buffers = engine.alloc(len(prompts), room(prefix, lengths) + most)
        buffers.cross = cross
        prefill_with(engine, buffers, embeds, lengths, prefix)
    tokens = [np.array(buffers.next_token)]
    for _ in range(most - 1):
        engine.decode(buffers)
        tokens.append(np.array(buffers.next_token))
    found = np.stack(tokens, axis=1).tolist()
    return [row[: next((i for i, t in enumerate(row) if t in llm.eos), len(row))] for row in found]
