"""Losses over the scored positions of a prefix tree; all in nats per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AnswerWeights:
    """Weights of target tokens: the first ``k`` count ``k_token`` times, the very first ``first_token`` more."""

    k: int
    k_token: float
    first_token: float

    def __call__(self, rank: Tensor) -> Tensor:
        """f32 [N] for the token's index in its target, int64 [N]."""
        weight = torch.where(rank < self.k, self.k_token, 1.0)
        return weight + self.first_token * (rank == 0)


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of ``-log p(label)``: ``sum_i w_i CE_i / sum_i w_i``.

    Args:
        logits: f32 [N,V].
        labels: int64 [N].
        weight: f32 [N].
    """
    return (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()


def distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))``, mean over positions (Hinton et al. 2015).

    Args:
        student: f32 [N,V] logits from latents.
        teacher: f32 [N,V] logits of the same LLM from the full text.
        tau: temperature.
    """
    log_p = F.log_softmax(student / tau, dim=-1)
    log_q = F.log_softmax(teacher / tau, dim=-1)
    return tau**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
