"""The one prompt layout, shared by training, evaluation and the runtime.

A prompt is a row of positions. Each position is either a token of the LLM or a *row* that an adapter made
(a latent or a learned task token). Two integer arrays describe it for the splice graph:
``ids`` (the token, 0 where a row stands) and ``row_index`` (which adapter row, -1 where a token stands).

    BOS  Z_0 .. Z_{M-1}  task_0 .. task_{K-1}  "\\nQuestion: ..." "\\nAnswer:"

Learned rows of the LLM (prefix tuning) stand between BOS and the latents. Strings of the context that came
verbatim beside its latents stand in a line of their own in front of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Encode = Callable[[str], list[int]]
"""Text to token ids without special tokens."""

QUESTION_TEMPLATE = "\nQuestion: {question}\nAnswer:"
"""Text that follows the context. An answer begins with a space, as the tokenizers in use expect."""

VERBATIM_TEMPLATE = "\nNames and numbers: {strings}"
"""Strings that came as they are beside the latents, in the order of their text; ``; `` stands between them."""

EXAMPLE_TEMPLATE = "{context}" + QUESTION_TEMPLATE + " {answer}\n\n"
"""A worked example that stands in front of a context and shows how questions are answered."""

CLOZE_TEMPLATE = "Fill in the blank: {sentence}"
"""The question about a sentence of the context with ``____`` in place of some words, which are the answer."""

Segment = Sequence[int] | range
"""Token ids, or the ``range`` of adapter rows that stands here."""


@dataclass(frozen=True)
class Prompt:
    """Positions of one prompt.

    Attributes:
        ids: int64 [T], token ids; 0 where an adapter row stands.
        row_index: int64 [T], index into the adapter's rows; -1 where a token stands.
    """

    ids: npt.NDArray[np.int64]
    row_index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ids.shape[0])


def join(segments: Sequence[Segment]) -> Prompt:
    """Concatenate token segments (lists of ids) and row segments (``range``)."""
    ids: list[int] = []
    rows: list[int] = []
    for segment in segments:
        if isinstance(segment, range):
            ids += [0] * len(segment)
            rows += list(segment)
        else:
            ids += list(segment)
            rows += [-1] * len(segment)
    return Prompt(np.asarray(ids, np.int64), np.asarray(rows, np.int64))


def question_ids(encode: Encode, question: str) -> list[int]:
    """Token ids of the question and the anchor ``Answer:``."""
    return encode(QUESTION_TEMPLATE.format(question=question))


def verbatim_ids(encode: Encode, strings: Sequence[str]) -> list[int]:
    """Token ids of the line that names strings of the context; none where there are none."""
    return encode(VERBATIM_TEMPLATE.format(strings="; ".join(strings))) if strings else []


def latent_prompt(
    bos: Sequence[int], latents: int, capacity: int, task_tokens: int, question: Sequence[int], front: int = 0
) -> Prompt:
    """BOS, the last ``front`` rows, the first ``latents`` rows, the task rows, then the question.

    The adapter returns ``capacity + task_tokens + front`` rows: a text shorter than ``capacity`` tokens has fewer
    latents, and the rows between its last latent and the task rows are not read.
    """
    behind = capacity + task_tokens
    return join([bos, range(behind, behind + front), range(latents), range(capacity, behind), question])


def text_prompt(
    bos: Sequence[int], context: Sequence[int], capacity: int, task_tokens: int, question: Sequence[int]
) -> Prompt:
    """The same prompt with the context as tokens instead of latents (empty ``context``: no context)."""
    return join([bos, context, range(capacity, capacity + task_tokens), question])
