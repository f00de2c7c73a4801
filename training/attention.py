"""Attention of a frozen LLM on a CPU in bf16: plain matrix products.

PyTorch's fused attention has a slow backward pass there: for 16 rows of 161 positions it took 3 to 7 times as long as
these products with their gradients (two cores with AMX).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

MATMUL: Final = "latentwire_matmul"
"""Its name among the attention implementations of transformers."""
HIDDEN: Final = -30000.0
"""Added to scores that may not be read; bf16 holds it, and its exponential is 0."""


def matmul_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Grouped attention, softmax at least in float32 inside its kernel.

    Args:
        module: the layer, for ``scaling`` where ``options`` has none.
        query: f[B,heads,S,D].
        key, value: f[B,kv_heads,C,D]; heads are a multiple of them, neighbours share one.
        attention_mask: bool [B,1,S,C], true where a position may be read; None: everything.

    Returns:
        f[B,S,heads,D], and None for the weights.
    """
    scaling = options.get("scaling")
    rows, heads, size, width = query.shape
    groups = key.shape[1]
    # Heads of one group lie one after the other, so the products need no copies of keys and values.
    grouped = (query * (module.scaling if scaling is None else scaling)).reshape(rows, groups, -1, width)
    scores = (grouped @ key.transpose(-1, -2)).view(rows, heads, size, -1)
    if attention_mask is not None:
        hidden = torch.zeros(attention_mask.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + hidden.masked_fill(~attention_mask, HIDDEN)
    # In bf16 the kernel computes in float32 and rounds at its end, as does its gradient; a float32 result would be
    # written and read once more.
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    out = weights.view(rows, groups, -1, weights.shape[-1]) @ value
    return out.view(rows, heads, size, -1).transpose(1, 2).contiguous(), None


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """The mask that the fused attention gets, spelled out also where it could be told to be causal instead."""
    mask: Tensor | None = sdpa_mask(*args, **(options | {"allow_is_causal_skip": False}))
    return mask


AttentionInterface.register(MATMUL, matmul_attention)
AttentionMaskInterface.register(MATMUL, _mask)


def implementation(dtype: torch.dtype, device: torch.device) -> str:
    """Which attention a frozen LLM computes with."""
    return MATMUL if dtype == torch.bfloat16 and device.type == "cpu" else "sdpa"
