"""The texts of a micro-batch as a teacher encoder reads them, beside what its student reads.

Teacher and student cut a text into the same spans: the student's. A token of the teacher belongs to the span that it
begins in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .binding import Cut

STRIDE: Final = 4
"""Bytes of one state of the student: two convolutions of stride 2."""


def byte_ids(text: str) -> list[int]:
    """What a byte encoder reads of a text: its UTF-8 bytes."""
    return list(text.encode())


def states_of(lengths: Tensor) -> Tensor:
    """States of texts of int64 [B] bytes."""
    return (lengths + STRIDE - 1) // STRIDE


@dataclass(frozen=True)
class Lesson:
    """What the teacher reads.

    Attributes:
        input_ids: int64 [B,T], its tokens, right padded with 0.
        lengths: int64 [B].
        starts: int64 [B,T], byte of the text at which each token begins; -1 for padding.
    """

    input_ids: Tensor
    lengths: Tensor
    starts: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Lesson:
        """The same with every tensor changed."""
        return Lesson(change(self.input_ids), change(self.lengths), change(self.starts))


def lesson(tokenizer: Tokenizer, texts: Sequence[str]) -> Lesson:
    """Tokens of texts and where they begin in their UTF-8 bytes."""
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids, starts = [], []
    for encoded, text in zip(found, texts, strict=True):
        at = [0, *accumulate(len(char.encode()) for char in text)]
        ids.append(torch.tensor(encoded.ids, dtype=torch.int64))
        starts.append(torch.tensor([at[begin] for begin, _ in encoded.offsets], dtype=torch.int64))
    lengths = torch.tensor([len(row) for row in ids])
    return Lesson(pad_sequence(ids, True), lengths, pad_sequence(starts, True, -1))


def token_cut(cut: Cut, starts: Tensor, grain: int) -> Cut:
    """The student's cut, in a teacher's tokens; arguments as of ``token_spans``."""
    spans = token_spans(cut.spans, starts, grain)
    return Cut(token_spans(cut.pieces, starts, grain) if cut.places else spans, cut.places, spans)


def token_spans(spans: Tensor, starts: Tensor, grain: int) -> Tensor:
    """Which of another encoder's tokens stand in which span of the student's.

    Args:
        spans: bool [B,M,S], of the units that the student cuts at.
        starts: int64 [B,T], byte at which each token begins, -1 for padding.
        grain: bytes of such a unit.

    Returns:
        bool [B,M,T]: each token in the span of the unit that it begins in. A span inside one long token has none.
    """
    unit = (starts.clamp(min=0) // grain)[:, None, :].expand(-1, spans.shape[1], -1)
    return spans.gather(2, unit) & (starts >= 0)[:, None, :]
