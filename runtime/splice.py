"""Prompts and rows to the decoder's input.

In: prompts (token or row at each position) of several requests. Out: inputs_embeds f32 [B,T,H], padded on the
right, and lengths i64 [B]. Knows nothing of where the rows came from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.prompt import Prompt
from ..engines.base import F32, I64, Engine


def splice(engine: Engine, prompts: Sequence[Prompt], rows: F32) -> tuple[F32, I64]:
    """Pad with the LLM's pad token to the longest prompt, then run the splice graph.

    Raises:
        LatentError: 3002 as ``Engine.splice``.
    """
    lengths = np.array([len(p) for p in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), engine.bundle.manifest.llm.pad, np.int64)
    index = np.full_like(ids, -1)
    for b, prompt in enumerate(prompts):
        ids[b, : len(prompt)] = prompt.ids
        index[b, : len(prompt)] = prompt.row_index
    return engine.splice(ids, index, rows), lengths


def embeddings(engine: Engine, ids: I64) -> F32:
    """Embeddings f32 [B,T,H] of token ids i64 [B,T], no rows among them.

    Raises:
        LatentError: 3002 as ``Engine.splice``.
    """
    none = np.zeros((len(ids), 1, engine.bundle.manifest.llm.hidden_size), np.float32)
    return engine.splice(ids, np.full_like(ids, -1), none)
