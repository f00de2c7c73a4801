"""Adapters: latents Z -> rows of one LLM's input embeddings. One adapter per LLM.

``Adapter`` is the control: linear, norm, scaled to the LLM's embedding RMS. ``LearnedAdapter`` reads each latent as
a soft lookup in the LLM's own frozen vocabulary: ``softmax(top(z K^T / tau)) E`` with unit keys
``K = normalise((E - mean) P)``.
A 256-dimensional latent names a token this way without loss, where a linear map of the same width loses most of it;
an MLP that starts at zero adds what lies between tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import unit


class TaskRows(nn.Module):
    """Learned rows that tell the frozen LLM what to do with the latents, in its embedding space: [K,H]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))

    def forward(self, batch: int) -> Tensor:
        return self.weight[None].expand(batch, -1, -1)


class Adapter(nn.Module):
    """Linear map, RMS norm, scale: f32 [B,M,d_z] -> f32 [B,M+K,H], the K task rows last."""

    def __init__(self, d_z: int, width: int, task_tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_z, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.task = TaskRows(task_tokens, width)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.linear(latents)
        rows = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        return torch.cat([rows, self.task(rows.shape[0])], dim=1)


class LearnedAdapter(nn.Module):
    """Soft vocabulary lookup plus a small MLP and an affine: f32 [B,M,d_z] -> f32 [B,M+K,H], task rows last.

    Args:
        d_z: width of a latent.
        vocab: rows of the LLM's embedding table.
        width: the LLM's hidden size H.
        task_tokens: K.
        top: vocabulary entries mixed for one latent.
        tau: start of the softmax temperature.
        hidden: width of the MLP.

    The table ``llm_embedding`` f32 [V,H] belongs to the frozen LLM (the *output* of its embedding module) and is
    neither trained nor saved here.
    """

    llm_embedding: Tensor
    mean: Tensor
    rms: Tensor

    def __init__(
        self, d_z: int, vocab: int, width: int, *, task_tokens: int, top: int, tau: float, hidden: int
    ) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("llm_embedding", torch.zeros(vocab, width), persistent=False)
        self.register_buffer("rms", torch.ones(()), persistent=False)
        self.register_buffer("mean", torch.zeros(width))
        self.key = nn.Linear(width, d_z, bias=False)
        self.log_tau = nn.Parameter(torch.tensor(tau).log())
        self.up = nn.Linear(d_z, hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.task = TaskRows(task_tokens, width)
        nn.init.zeros_(self.down.weight)

    def set_table(self, table: Tensor) -> None:
        """Give the adapter its LLM's embeddings, f32 [V,H]."""
        self.llm_embedding.copy_(table)
        self.rms.copy_(table.square().mean().sqrt())

    def forward(self, latents: Tensor) -> Tensor:
        looked_up = self._lookup(unit(latents))
        rows = (looked_up + self.rms * self.down(F.gelu(self.up(latents)))) * self.gain + self.bias
        return torch.cat([rows, self.task(rows.shape[0])], dim=1)

    def _lookup(self, query: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            # Which entries win is found without gradient; only the winners' keys are then computed with it.
            with torch.no_grad():
                best = self._scores(query, self.keys()).topk(self.top, dim=-1).indices
            entries = F.embedding(best, self.llm_embedding)
            keys = unit(self.key(entries - self.mean))
            score = (keys @ query.unsqueeze(-1)).squeeze(-1) / self.log_tau.exp()
            return (score.softmax(-1).unsqueeze(-2) @ entries).squeeze(-2)
        score, best = self._scores(query, self.keys()).topk(self.top, dim=-1)
        weight = (score / self.log_tau.exp()).softmax(-1)
        return (weight.unsqueeze(-2) @ F.embedding(best, self.llm_embedding)).squeeze(-2)

    def keys(self) -> Tensor:
        """f32 [V,d_z], unit rows: where each token of the LLM lies among the latents."""
        return unit(self.key(self.llm_embedding - self.mean))

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return query @ keys.T
