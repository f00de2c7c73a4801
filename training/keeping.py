"""What of a text is worth a latent: a head on the encoder's states says how likely a token is asked for.

It learns from questions: a token is *wanted* where it stands in an answer (binary cross-entropy over the tokens of
contexts with questions). A text is then cut at the tokens that are wanted most (``span_type = "learned"``), so
phrases that answers are made of stay whole, where a token's rarity alone keeps their rarest word. Selection of what a
reader will need, as in extractive summarisation and selective context (Li et al., arXiv 2304.12102). A byte encoder's
head follows its teacher's, on texts of any kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.prompt import Encode
from ..core.salient import LEVELS, STEPS
from .data import Question

UNKNOWN: Final = -1
"""Label of tokens of which no question tells whether they are wanted: passages, padding."""
REACH: Final = 5
"""Width of each of the two convolutions, in states."""
NARROW: Final = 3
"""The first has a third of the encoder's width, the second half of that."""
RANGE: Final = 12.0
"""Log-odds from -RANGE to RANGE are told apart when a text is cut."""


class Keep(nn.Module):
    """Log-odds that a token is wanted: f32 [B,S,H], inside bool [B,S] -> f32 [B,S*each]; padding changes nothing.

    Args:
        width: H.
        each: tokens that may begin in one state, one after the other.
    """

    def __init__(self, width: int, each: int = 1) -> None:
        super().__init__()
        inner = max(4, width // NARROW)
        self.first = nn.Conv1d(width, inner, REACH, padding=REACH // 2)
        self.second = nn.Conv1d(inner, max(2, inner // 2), REACH, padding=REACH // 2)
        self.last = nn.Linear(max(2, inner // 2), each)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        real = inside[:, None, :]
        x = F.gelu(self.first(states.transpose(1, 2) * real)) * real
        x = F.gelu(self.second(x))
        out: Tensor = self.last(x.transpose(1, 2)).flatten(1)
        return out


def as_salience(odds: Tensor) -> Tensor:
    """Log-odds as the salience by which a text is cut, f32 of the same shape, from 0 to ``LEVELS / STEPS``."""
    most = (LEVELS - 1) / STEPS
    return ((odds + RANGE) * (most / (2 * RANGE))).clamp(0.0, most)


def wanted_tokens(context: str, questions: Sequence[Question], encode: Encode, size: int) -> list[int]:
    """Labels of the first ``size`` tokens of a context: 1 in an answer to one of its questions, 0 elsewhere.

    Each question's first answer that stands in the context counts, where it stands first. Without a question: all
    ``UNKNOWN``.
    """
    if not questions:
        return [UNKNOWN] * size
    labels = [0] * size
    for question in questions:
        answer = next((a for a in question.answers if a in context), None)
        if answer is None:
            continue
        start = context.index(answer)
        # Tokens begin with the space before a word, so what stands before it is cut there.
        first = len(encode(context[:start].rstrip()))
        last = len(encode(context[: start + len(answer)]))
        for token in range(first, min(last, size)):
            labels[token] = 1
    return labels


def keep_loss(odds: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy of f32 [B,S] at int64 [B,S] labels that are known; 0 where none is."""
    known = wanted != UNKNOWN
    loss = F.binary_cross_entropy_with_logits(odds, wanted.clamp(min=0).to(odds.dtype), reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def follow_loss(odds: Tensor, told: Tensor, starts: Tensor, inside: Tensor) -> Tensor:
    """Binary cross-entropy of a head of bytes to what a head of tokens says of the same texts; for each token.

    Args:
        odds: f32 [B,S], by byte.
        told: f32 [B,T], log-odds of the other encoder's tokens.
        starts: int64 [B,T], the byte at which each of them begins; -1 for padding. Of several at one byte the likeliest
            counts; a byte at which none begins is not wanted.
        inside: bool [B,S], real bytes.
    """
    likely = told.sigmoid() * (starts >= 0)
    goal = torch.zeros_like(odds).scatter_reduce(1, starts.clamp(min=0), likely, "amax")
    loss = F.binary_cross_entropy_with_logits(odds, goal, reduction="none")
    return (loss * inside).sum() / (starts >= 0).sum().clamp(min=1)
