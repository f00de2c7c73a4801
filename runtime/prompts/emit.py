"""Latent prompts in the forms that other runtimes take. No torch: arrays are numpy, payloads are JSON values.

Read for this, and run in the slow tier (tests/runtime/prompts/test_their_parsers.py): vLLM 0.33.0
``renderers/online_renderer.py`` and ``renderers/embed_utils.py``, SGLang 0.5.23 ``managers/io_struct.py``; and
transformers 5 ``generate``. vLLM needs ``--enable-prompt-embeds``, and prefix caching off: its cache
is keyed by token ids, which embeddings have none of. SGLang needs ``--disable-radix-cache`` for the same reason.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engines.base import F32, Engine
from .answer import embed
from .prompt import LatentPrompt
from .torch_file import pack


def embeddings(engine: Engine, prompt: LatentPrompt) -> F32:
    """The whole prompt as float32 [T,H]: tokens looked up in the LLM's table. Raises as ``answer.embed``."""
    whole: F32 = embed(engine, [prompt])[0][0]
    return whole


def hugging_face(engine: Engine, prompts: Sequence[LatentPrompt]) -> dict[str, Any]:
    """Arguments of ``model.generate``, to be wrapped by ``torch.from_numpy``.

    Returns:
        ``inputs_embeds`` float32 [B,T,H] and ``attention_mask`` int64 [B,T], padded on the left as ``generate`` wants.
    """
    right, lengths = embed(engine, prompts)
    left, mask = np.zeros_like(right), np.zeros(right.shape[:2], np.int64)
    for b, n in enumerate(lengths.tolist()):
        left[b, right.shape[1] - n :] = right[b, :n]
        mask[b, right.shape[1] - n :] = 1
    return {"inputs_embeds": left, "attention_mask": mask}


def vllm(prompt: LatentPrompt, embeds: F32 | None = None) -> dict[str, Any]:
    """vLLM's ``EmbedsPrompt``; ``prompt_embeds`` is to be wrapped by ``torch.from_numpy``.

    With ``embeds`` float32 [T,H] every position is an embedding. Without, the prompt is mixed: vLLM looks the tokens
    up itself, and their rows here are zero.
    """
    if embeds is not None:
        return {"prompt_embeds": embeds}
    full = np.zeros((len(prompt), prompt.target.hidden_size), np.float32)
    full[~prompt.is_token] = prompt.latents
    return {
        "prompt_embeds": full,
        "prompt_token_ids": prompt.token_ids.tolist(),
        "prompt_is_token_ids": prompt.is_token.tolist(),
    }


def vllm_request(prompt: LatentPrompt, embeds: F32, model: str, **sampling: Any) -> dict[str, Any]:
    """Body of ``POST /v1/completions``: base64 of a file in torch's format, in the target's dtype.

    There is no ``prompt`` in it: vLLM takes even an empty one for a second prompt, and answers both. The stock
    ``openai`` client, which insists on the argument, sends null for ``prompt=None``.
    """
    data = base64.b64encode(pack(embeds, prompt.target.dtype)).decode("ascii")
    return {"model": model, "prompt_embeds": data, **sampling}


def sglang_request(embeds: Sequence[F32], **sampling: Any) -> dict[str, Any]:
    """Body of ``POST /generate``: numbers as lists, one prompt or several."""
    rows = [e.tolist() for e in embeds]
    return {"input_embeds": rows[0] if len(rows) == 1 else rows, "sampling_params": sampling}
