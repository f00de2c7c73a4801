"""Two ways to ask, each applied to every row alike.

``task-token``: BOS, context, task rows, question, ``Answer:``. The rows were learned on full text and on latents,
and tell the LLM to answer briefly. The target is the answer and EOS.

``one-shot``: BOS, one worked example (text, question, answer, blank line), context, question, ``Answer:``. The example
shows the format, so text needs no learned row; latents keep their task rows, with which they were trained. The target
is the answer alone: the example teaches a blank line where the task rows teach EOS, and neither says anything about
the text. NLL of the two protocols therefore cannot be compared with one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.prompt import join, question_ids
from ..batch import Reader, example_ids, task_range
from ..data import Item, Question
from ..tree import Branch
from .kinds import LATENT, Kind

NAMES = ("task-token", "one-shot")
EXAMPLE = Item(
    "The lighthouse at Port Ellery was finished in 1871 after three years of work. Its keeper, Martha Quill, lit the "
    "lamp every evening for forty years, and ships from the north steered by it until a beacon on the new pier took "
    "its place.",
    (Question("Who lit the lamp at Port Ellery?", ("Martha Quill",)),),
)
"""Written for this purpose; it stands in no data set."""
EXTRA = {"task-token": ("none_plain", "full_plain"), "one-shot": ("none_tuned", "full_tuned")}
"""Rows beside the protocol's own: the other prompt for the two ends of the scale."""


@dataclass(frozen=True)
class Protocol:
    """How questions are asked.

    Attributes:
        name: one of ``NAMES``.
        example: context, question and answer of the worked example (``one-shot``).
    """

    name: str = "task-token"
    example: Item = EXAMPLE

    def opening(self, llm: Reader) -> list[int]:
        """Token ids between BOS and the context."""
        if self.name == "task-token":
            return []
        return example_ids(llm, self.example)

    def is_tuned(self, kind: Kind) -> bool:
        """Whether the prompt of this row holds task rows."""
        return (self.name == "task-token" or kind.base in LATENT) if kind.tuned is None else kind.tuned

    def branch(
        self,
        llm: Reader,
        question: Question,
        kind: Kind,
        capacity: int,
        task_tokens: int,
        verbatim: Sequence[int] = (),
    ) -> Branch:
        """What follows the context: task rows if there are any, strings that came ``verbatim``, question, anchor;
        target as the module says."""
        rows = task_range("answer", capacity, task_tokens) if self.is_tuned(kind) else range(0)
        prompt = join([rows, verbatim, question_ids(llm.encode, question.text)])
        return Branch(prompt, self.target(llm, question.answers[0]), "answer")

    def target(self, llm: Reader, answer: str) -> tuple[int, ...]:
        """Token ids to be predicted."""
        closing = (llm.special.eos[0],) if self.name == "task-token" else ()
        return (*llm.encode(" " + answer), *closing)

    def describe(self) -> dict[str, object]:
        """What a reader needs to repeat it."""
        if self.name == "task-token":
            return {
                "name": self.name,
                "prompt": "BOS, context, task tokens, question, 'Answer:'",
                "target": "answer, EOS",
            }
        question = self.example.questions[0]
        return {
            "name": self.name,
            "prompt": "BOS, example, context, (task tokens with latents only) question, 'Answer:'",
            "target": "answer",
            "example": [self.example.context, question.text, question.answers[0]],
        }
