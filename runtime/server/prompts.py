"""Bodies to prompts: which frame or text a question is about, and how messages become one question.

In: validated bodies. Out: ``Asked``, still text and bytes; no tokenizer, no model.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...core.errors import InputError
from ..pipeline import Context
from .faults import ParamError
from .schema import ChatBody, ChatMessage, CompletionBody, FilePart

FRAME_TYPE: Final = "application/vnd.latentwire.frame"
FRAME_PREFIX: Final = f"data:{FRAME_TYPE};base64,"


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        context: frames or a text; None: the prompt is raw text that the model goes on with.
        prompt: the question, or the raw text.
        param: field of the request that it came from.
    """

    context: Context | None
    prompt: str
    param: str


def of_completion(body: CompletionBody, limit: int) -> list[Asked]:
    """Prompts of ``/v1/completions``, in order; ``limit``: most of them.

    Raises:
        ParamError: 2130 frames and prompts that do not go together; 2135 malformed base64.
    """
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) > limit:
        raise _refused("prompt", "too many prompts", f"expected at most {limit}, got {len(prompts)}")
    if body.frame is None:
        names = [f"prompt.{i}" if len(prompts) > 1 else "prompt" for i in range(len(prompts))]
        return [Asked(body.context, prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    if body.context is not None:
        raise _refused("context", "frame and context together", "expected one of them")
    frames = [body.frame] if isinstance(body.frame, str) else body.frame
    if len(frames) not in (1, len(prompts)):
        expected = f"expected one frame, or one for each of {len(prompts)} prompts, got {len(frames)}"
        raise _refused("frame", "frames and prompts differ in number", expected)
    decoded = [from_base64(frame, "frame") for frame in frames]
    contexts = decoded * len(prompts) if len(decoded) == 1 else decoded
    return [Asked(context, prompt, "frame") for context, prompt in zip(contexts, prompts, strict=True)]


def of_chat(body: ChatBody) -> Asked:
    """The prompt of ``/v1/chat/completions``.

    The last message is the question. Frames are its context; without frames the system messages are. Earlier
    questions and answers stand in front of the question in the layout that the models were trained with.

    Raises:
        ParamError: 2130 the last message is no user's; 2131 several frames; 2135 malformed base64.
    """
    frames = _frames(body.messages)
    if body.messages[-1].role != "user":
        raise _refused("messages", "no question", f"expected a user message at the end, got {body.messages[-1].role}")
    system = "\n".join(_text(m) for m in body.messages if m.role in ("system", "developer"))
    turns = [m for m in body.messages if m.role in ("user", "assistant")]
    question = _conversation(turns)
    if frames:
        return Asked(frames[0], f"{system}\n{question}" if system else question, "messages")
    return Asked(system, question, "messages")


def from_base64(text: str, param: str) -> bytes:
    """Bytes of standard base64, padding included.

    Raises:
        ParamError: 2135.
    """
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as e:
        fix = "send standard base64 with padding, without line breaks"
        raise ParamError(
            InputError(2135, "malformed base64", where=f"field {param}", expected=str(e), fix=fix), param
        ) from e


def _frames(messages: Sequence[ChatMessage]) -> list[bytes]:
    found = []
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else []):
            if isinstance(part, FilePart):
                param = f"messages.{i}.content.{j}.file"
                if message.role != "user":
                    raise _refused(param, "frame outside a user message", f"got it in one of role {message.role}")
                found.append(_from_url(part.file.file_data, param))
    if len(found) > 1:
        what = "more than one frame in a request"
        error = InputError(2131, what, where="field messages", fix="send the frames of one text end to end in one file")
        raise ParamError(error, "messages")
    return found


def _from_url(url: str, param: str) -> bytes:
    if not url.startswith(FRAME_PREFIX):
        expected = f"expected {FRAME_PREFIX}..., got {url[:40]!r}"
        raise ParamError(
            InputError(2135, "not a data URL of a frame", where=f"field {param}", expected=expected), param
        )
    return from_base64(url.removeprefix(FRAME_PREFIX), param)


def _conversation(turns: Sequence[ChatMessage]) -> str:
    """``q1 \\nAnswer: a1 \\nQuestion: q2``: with what the prompt template puts around it, turns of the trained form."""
    parts = [_text(turns[0])]
    for message in turns[1:]:
        word = "Question" if message.role == "user" else "Answer"
        parts.append(f"\n{word}: {_text(message)}")
    return "".join(parts)


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if not isinstance(part, FilePart))


def _refused(param: str, what: str, expected: str) -> ParamError:
    return ParamError(InputError(2130, what, where=f"field {param}", expected=expected), param)
