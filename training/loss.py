"""Loss formulas; language model losses are in nats per token. What is summed with which weight: ``bundles.py``."""

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
    return weighted_mean(F.cross_entropy(logits, labels, reduction="none"), weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i`` over f32 [N]."""
    return (values * weight).sum() / weight.sum()


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


@dataclass(frozen=True)
class TopLogits:
    """What is kept of a teacher: its best tokens int64 [N,k] and ``log softmax(teacher / tau)`` there, f32 [N,k]."""

    tokens: Tensor
    log_p: Tensor


def top_logits(teacher: Tensor, tau: float, k: int) -> TopLogits:
    """The ``k`` most likely tokens of f32 [N,V] logits; rounded to float16 as they are when they come from disk."""
    log_p, tokens = F.log_softmax(teacher / tau, dim=-1).topk(min(k, teacher.shape[-1]), dim=-1)
    return TopLogits(tokens, log_p.half().float())


def distillation_top(student: Tensor, teacher: TopLogits, tau: float) -> Tensor:
    """``tau^2 KL`` between the two distributions over the teacher's best k tokens and one rest.

    ``sum_i p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest)``, ``p_rest = 1 - sum_i p_i``. A lower bound of
    the KL over all tokens (data processing inequality), equal to it for k = V. Without the rest the student would
    be free to spread mass over tokens that the teacher excludes.

    Args:
        student: f32 [N,V].
        teacher: of the same N positions, made with the same ``tau``.
        tau: temperature.
    """
    log_q = F.log_softmax(student / tau, dim=-1).gather(1, teacher.tokens)
    p = teacher.log_p.exp()
    inside = (p * (teacher.log_p - log_q)).sum(-1)
    p_rest, q_rest = ((1 - x.sum(-1)).clamp(min=1e-6) for x in (p, log_q.exp()))
    return tau**2 * (inside + p_rest * (p_rest.log() - q_rest.log())).mean()


def latent_losses(student: Tensor, teacher: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of latents to those of another encoder of the same text, on the same spans (encoder distillation).

    ``cos = mean(1 - cos(z, z*))`` and ``mse = mean((z - z*)^2)`` over the latents that are used.

    Args:
        student: f32 [B,M,d_z].
        teacher: f32 [B,M,d_z].
        used: bool [B,M].

    Returns:
        (cos, mse), both scalars.
    """
    weight = used.float()
    cos = weighted_mean(1 - F.cosine_similarity(student, teacher, dim=-1), weight)
    return cos, weighted_mean((student - teacher).square().mean(-1), weight)
