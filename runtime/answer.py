"""One growing answer: tokens in, text out, stop rules applied.

Knows the tokenizer and the stop rules, nothing of batches or engines. Streamed pieces joined together are
exactly the final text: nothing is shown that a later token could take back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Stop = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Answer:
    """What one prompt produced.

    Attributes:
        text: without the space that leads it and without what follows a stop string.
        stop: why it ended: the model said so, a stop string, or the token limit.
        new_tokens: tokens generated, the stopping one included.
        prompt_positions: positions of the whole prompt.
        context_positions: positions that the context took in it: latents, or tokens of a text.
    """

    text: str
    stop: Stop
    new_tokens: int
    prompt_positions: int
    context_positions: int


class Growing:
    """An answer under construction.

    Args:
        decode: token ids to text.
        eos: ids that end an answer.
        stop: strings that end an answer.
        limit: most tokens.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], eos: Collection[int], stop: Sequence[str], limit: int
    ) -> None:
        self._decode, self._eos, self._stop, self._limit = decode, eos, stop, limit
        self._ids: list[int] = []
        self._raw = ""
        self._shown = 0
        self.new_tokens = 0
        self.stopped: Stop | None = None

    def feed(self, token: int) -> str:
        """Take the next token; returns the text that became certain, often nothing."""
        self.new_tokens += 1
        if token in self._eos:
            self.stopped = "eos"
        else:
            self._ids.append(token)
            self._raw = self._decode(self._ids)
            cut = min((at for s in self._stop if (at := self._raw.find(s)) >= 0), default=-1)
            if cut >= 0:
                self._raw, self.stopped = self._raw[:cut], "stop"
            elif self.new_tokens >= self._limit:
                self.stopped = "length"
        return self._certain()

    @property
    def text(self) -> str:
        """The answer so far, without outer white space."""
        return self._raw.strip()

    def _certain(self) -> str:
        sure = self._raw if self.stopped else self._raw[: len(self._raw) - self._held()]
        sure = sure.lstrip()
        sure = sure.rstrip()  # white space inside an answer is shown with the word after it
        piece, self._shown = sure[self._shown :], max(self._shown, len(sure))
        return piece

    def _held(self) -> int:
        """Characters at the end that later tokens may change: half a character, the start of a stop string."""
        broken = len(self._raw) - len(self._raw.rstrip("\ufffd"))
        body = self._raw[: len(self._raw) - broken]
        begun = max((n for s in self._stop for n in range(1, len(s)) if body.endswith(s[:n])), default=0)
        return broken + begun
