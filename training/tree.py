"""Prefix trees: several continuations behind one encoded context, in one row.

A context is encoded once and its latents stand once in the LLM's row; every question (cloze, reconstruction
cue) about it is a *branch* that sees the prefix and itself, never another branch. Positions restart behind the
prefix in each branch, so every branch computes exactly what it would compute alone. One row with four questions
costs a third of four rows. Compare "tree attention" in SpecInfer (arXiv 2305.09781), used here for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.prompt import Prompt

KINDS = ("answer", "reconstruct", "continue", "cloze")
"""What a branch asks for; losses are logged by it. A cloze question stands behind the task rows of ``answer``."""
QUESTIONS = (KINDS.index("answer"), KINDS.index("cloze"))
IGNORE = -100
"""Label of positions that are not scored, as in ``torch.nn.functional.cross_entropy``."""


@dataclass(frozen=True)
class Branch:
    """One continuation: what stands before the target, and the target.

    Attributes:
        prompt: task rows and text behind the prefix.
        target: token ids to predict, the closing EOS included.
        task: one of ``KINDS``.
    """

    prompt: Prompt
    target: tuple[int, ...]
    task: str


@dataclass(frozen=True)
class BranchKey:
    """What identifies a branch behind a text: SHA-256 of their tokens, and its scored and asked positions."""

    digest: bytes
    scored: int
    asked: int

    def of(self, term: str) -> bytes:
        """32 bytes for the branch at the positions of ``kd`` or ``prefix_kd``."""
        return hashlib.sha256(self.digest + term.encode()).digest()

    def size(self, term: str) -> int:
        """Positions of the term."""
        return self.asked if term == "prefix_kd" else self.scored


@dataclass(frozen=True)
class Tree:
    """A padded batch of prefix trees; tensors are [B, S] unless another shape is given.

    Attributes:
        ids: int64, token ids, 0 where an adapter row or nothing stands.
        row_index: int64, adapter row, -1 where a token stands.
        positions: int64, rotary positions.
        branch: int64, 0 prefix, 1.. branches, -1 padding.
        labels: int64, token to be predicted *at* this position (already shifted), ``IGNORE`` elsewhere.
        rank: int64, index of that token inside its target.
        task: int64, index into ``KINDS`` of the branch.
        scored: int64 [N], where labels stand, as indices into [B*S]. Found here once: looking for them on a GPU would
            make the host wait for it.
        asked: int64 [P], where the words of questions and their anchors stand, without the last one, which is scored.
        counts: scored positions of each of ``KINDS``, on the host.
        keys: of the branches, row by row, where a teacher's words are kept.
    """

    ids: Tensor
    row_index: Tensor
    positions: Tensor
    branch: Tensor
    labels: Tensor
    rank: Tensor
    task: Tensor
    scored: Tensor
    asked: Tensor
    counts: tuple[int, ...]
    keys: tuple[BranchKey, ...] = ()

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tree:
        own: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in own.items()}
        return Tree(**changed)

    def to(self, device: torch.device) -> Tree:
        """The same batch on another device; does not wait for the copy."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Tree:
        """The same batch in page-locked memory, from which a GPU copies while the host goes on."""
        return self._each(Tensor.pin_memory)

    def mask(self) -> Tensor:
        """bool [B, 1, S, S], true where a position may be read."""
        query, key = self.branch[:, :, None], self.branch[:, None, :]
        size = self.ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.ids.device).tril()
        seen = ((key == 0) | (key == query)) & (key >= 0) & causal
        # A padded position reads itself: a softmax over nothing is NaN.
        seen |= torch.eye(size, dtype=torch.bool, device=self.ids.device)
        return seen[:, None]


FILLED = {"ids": 0, "row_index": -1, "positions": 0, "branch": -1, "labels": IGNORE, "rank": 0, "task": 0}
"""What ``_row`` returns, and what stands behind a row that is shorter than the others."""


def build(prefixes: Sequence[Prompt], branches: Sequence[Sequence[Branch]]) -> Tree:
    """Pack each prefix with its branches into one row and pad the rows on the right."""
    rows = [_row(prefix, own) for prefix, own in zip(prefixes, branches, strict=True)]
    size = max(len(row[0]) for row in rows)
    out = [np.full((len(rows), size), value, np.int64) for value in FILLED.values()]
    for b, row in enumerate(rows):
        for array, values in zip(out, row, strict=True):
            array[b, : len(values)] = values
    _, row_index, _, branch, labels, _, task = out
    scored = labels != IGNORE
    # From its first label on every position of a branch has one, so a position without is part of the prompt.
    asked = (branch > 0) & (row_index < 0) & np.isin(task, QUESTIONS) & ~scored
    counts = np.bincount(task[scored], minlength=len(KINDS)).tolist()
    found: dict[str, Any] = dict(zip(FILLED, map(torch.from_numpy, out), strict=True))
    found |= {"scored": torch.from_numpy(np.flatnonzero(scored)), "asked": torch.from_numpy(np.flatnonzero(asked))}
    return Tree(**found, counts=tuple(counts))


def _row(prefix: Prompt, branches: Sequence[Branch]) -> tuple[list[int], ...]:
    start = len(prefix)
    ids, rows = prefix.ids.tolist(), prefix.row_index.tolist()
    positions, branch = list(range(start)), [0] * start
    labels, rank, task = [IGNORE] * start, [0] * start, [0] * start
    for number, own in enumerate(branches, start=1):
        length = len(own.prompt)
        # The last target token is only ever predicted, so it needs no position of its own.
        body = length + len(own.target) - 1
        ids += own.prompt.ids.tolist() + list(own.target[:-1])
        rows += own.prompt.row_index.tolist() + [-1] * (len(own.target) - 1)
        positions += range(start, start + body)
        branch += [number] * body
        labels += [IGNORE] * (length - 1) + list(own.target)
        rank += [0] * (length - 1) + list(range(len(own.target)))
        task += [KINDS.index(own.task)] * body
    return ids, rows, positions, branch, labels, rank, task
