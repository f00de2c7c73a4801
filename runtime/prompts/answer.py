"""Latent prompts on our own engine, greedy.

In: prompts for the engine's LLM. Out: embeddings, or token ids. Knows nothing of frames or texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.errors import InputError
from ...engines.base import F32, I64, Engine
from .prompt import LatentPrompt
from .target import target_of


def embed(engine: Engine, prompts: Sequence[LatentPrompt]) -> tuple[F32, I64]:
    """Embeddings float32 [B,T,H], padded on the right, and true lengths int64 [B].

    Raises:
        InputError: 2146 a prompt for another LLM.
    """
    target, lengths = target_of(engine), np.array([len(p) for p in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), engine.bundle.manifest.llm.pad, np.int64)
    index = np.full_like(ids, -1)
    rows = np.zeros((len(prompts), max(1, *(len(p.latents) for p in prompts)), target.hidden_size), np.float32)
    for b, prompt in enumerate(prompts):
        prompt.check(target)
        ids[b, : len(prompt)] = prompt.token_ids
        index[b, : len(prompt)][~prompt.is_token] = np.arange(len(prompt.latents))
        rows[b, : len(prompt.latents)] = prompt.latents
    return engine.splice(ids, index, rows), lengths


def answer(engine: Engine, prompts: Sequence[LatentPrompt], max_new_tokens: int = 16) -> list[list[int]]:
    """Token ids of each answer; the one that ends it (EOS) included.

    Raises:
        InputError: 2111 nothing to do; 2141 no room for the answer; 2146 a prompt for another LLM.
    """
    if not prompts or max_new_tokens < 1:
        expected = f"expected at least one prompt and token, got {len(prompts)} and {max_new_tokens}"
        raise InputError(2111, "nothing to answer", expected=expected)
    embeds, lengths = embed(engine, prompts)
    manifest = engine.bundle.manifest
    need = embeds.shape[1] + max_new_tokens
    most = min(manifest.llm.max_positions, manifest.capacity or need)
    if need > most:
        expected = f"expected at most {most} positions with the answer, got {need}"
        raise InputError(2141, "prompt leaves no room for its answer", where="latent prompt", expected=expected)
    buffers = engine.alloc(len(prompts), manifest.capacity or need)
    engine.prefill(buffers, embeds, lengths)
    out = [[int(token)] for token in buffers.next_token[: len(prompts)]]
    for _ in range(max_new_tokens - 1):
        if all(row[-1] in manifest.llm.eos for row in out):
            break
        engine.decode(buffers)
        for row, token in zip(out, buffers.next_token.tolist(), strict=False):
            if row[-1] not in manifest.llm.eos:
                row.append(token)
    return out
