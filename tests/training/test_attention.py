"""Attention by matrix products: PyTorch's fused one with its gradients, in grouped heads and under masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from latentwire.training.attention import MATMUL, implementation, matmul_attention
from latentwire.training.llm import LMWrapper

CPU = torch.device("cpu")


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_it_is_the_fused_attention(groups: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 6, 5, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, groups, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 5, 9) < 0.6
    mask[..., 0] = True
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    own, weights = matmul_attention(None, query, key, value, mask, scaling=8**-0.5)
    assert weights is None
    torch.testing.assert_close(own, fused, rtol=1e-12, atol=1e-12)
    given = torch.randn_like(own)
    for one, other in zip(
        torch.autograd.grad(own, (query, key, value), given),
        torch.autograd.grad(fused, (query, key, value), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_bf16_softmax_is_a_float32_one_rounded() -> None:
    """The weights are those of float32, to the last bit or its neighbour."""
    torch.manual_seed(0)
    scores = (3 * torch.randn(1, 1, 300, 300)).bfloat16()
    # Keys and values of unit vectors: scores go in, weights come out.
    unit = torch.eye(300, dtype=torch.bfloat16)[None, None]
    found = matmul_attention(None, scores, unit, unit, None, scaling=1.0)[0][:, :, 0]
    torch.testing.assert_close(found, torch.softmax(scores.float(), -1).bfloat16()[0], rtol=2**-7, atol=0)


def test_what_is_hidden_has_no_weight() -> None:
    query, key, value = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 3, 4), torch.eye(3, 4)[None, None]
    out, _ = matmul_attention(None, query, key, value, torch.tensor([[[[True, False, True]]]]), scaling=1.0)
    assert out.flatten().tolist() == [0.5, 0.0, 0.5, 0.0]


def test_bf16_on_a_cpu_uses_it_and_answers_the_same(tiny_llm: Path) -> None:
    assert implementation(torch.float32, CPU) == "sdpa"
    assert implementation(torch.bfloat16, torch.device("cuda")) == "sdpa"
    llm = LMWrapper(str(tiny_llm), torch.bfloat16, CPU)
    assert llm.model.config._attn_implementation == MATMUL
    ids = torch.tensor([[5, 40, 50, 60, 70], [0, 0, 40, 50, 60]])
    padded = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    own = llm.model(ids, attention_mask=padded).logits
    causal = llm.model(ids[:1]).logits
    assert F.cosine_similarity(causal.float(), own[:1].float(), dim=-1).min() > 0.999
    llm.model.set_attn_implementation("sdpa")
    fused = llm.model(ids, attention_mask=padded).logits
    # In bf16 the two round at other places.
    assert F.cosine_similarity(own[padded.bool()].float(), fused[padded.bool()].float(), dim=-1).min() > 0.999
