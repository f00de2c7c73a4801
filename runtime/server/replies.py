"""Answers as OpenAI's JSON: whole, or in events of a stream. Dictionaries only; knows nothing of HTTP."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..answer import Answer, Stop

Form = Literal["text_completion", "chat.completion"]
_PREFIX: Final[dict[Form, str]] = {"text_completion": "cmpl", "chat.completion": "chatcmpl"}
DONE: Final = b"data: [DONE]\n\n"
"""Ends every stream that went well."""


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer carry.

    Attributes:
        form: of which endpoint.
        model: name the bundle is served by.
    """

    form: Form
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Answer], n: int) -> dict[str, Any]:
        """The body of an answer that is not streamed; ``n`` choices belong to each prompt."""
        found = [self._choice(i, _reason(c.stop), whole=c.text) for i, c in enumerate(choices)]
        return {**self._head(self.form), "choices": found, "usage": usage(choices, n)}

    def begin(self, index: int) -> dict[str, Any]:
        """First event of a choice in a chat: who speaks."""
        return self._event([self._choice(index, None, delta={"role": "assistant", "content": ""})])

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A piece of text."""
        return self._event([self._choice(index, None, delta={"content": text}, text=text)])

    def end(self, index: int, stop: Stop) -> dict[str, Any]:
        """Last event of a choice."""
        return self._event([self._choice(index, _reason(stop), delta={}, text="")])

    def counts(self, choices: Sequence[Answer], n: int) -> dict[str, Any]:
        """The event that ``include_usage`` asks for."""
        return {**self._event([]), "usage": usage(choices, n)}

    @property
    def is_chat(self) -> bool:
        """Chat events have deltas, completion events have texts."""
        return self.form == "chat.completion"

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(f"{self.form}.chunk" if self.is_chat else self.form), "choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{_PREFIX[self.form]}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _choice(
        self, index: int, reason: str | None, *, whole: str | None = None, delta: object = None, text: str = ""
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if whole is None:
            return {**body, "delta": delta} if self.is_chat else {**body, "text": text}
        if not self.is_chat:
            return {**body, "text": whole}
        return {**body, "message": {"role": "assistant", "content": whole, "refusal": None}}


def usage(choices: Sequence[Answer], n: int) -> dict[str, int]:
    """Counts: a prompt counts once however many choices it has; latents count as the positions they take."""
    prompt = sum(c.prompt_positions for c in choices[::n])
    new = sum(c.new_tokens for c in choices)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event, UTF-8."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _reason(stop: Stop) -> str:
    return "length" if stop == "length" else "stop"
