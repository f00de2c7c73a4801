"""Requests as pydantic models: the part of OpenAI's interface that is served, and two fields more.

Strict: a wrong type is refused, and so is a field that is in no list here. Fields of OpenAI's that ask for what
this server does not do are allowed only with the value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...core.errors import InputError
from ..choices import CodecName, Protect, TooLong
from .faults import ParamError, unsupported

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(ge=1e-6, le=1, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(max_length=256)]

NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""Field of OpenAI's -> the values that ask for nothing."""


class StreamOptions(BaseModel):
    """``include_usage``: one more event at the end, with the counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Ask(BaseModel):
    """What both kinds of generation share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Name
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None


class CompletionBody(Ask):
    """``POST /v1/completions``.

    Attributes:
        prompt: texts to go on with; with ``frame`` or ``context`` the questions about it.
        frame: base64 of a text's frames; one for all prompts, or one for each.
        context: the text itself instead of a frame.
    """

    prompt: str | Annotated[list[str], Field(min_length=1)]
    frame: str | Annotated[list[str], Field(min_length=1)] | None = None
    context: str | None = None


class FileSource(BaseModel):
    """OpenAI's ``file`` part, with the frames as a data URL."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file_data: str
    filename: Name | None = None


class TextPart(BaseModel):
    """A text in a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class FilePart(BaseModel):
    """Frames in a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["file"]
    file: FileSource


Part = Annotated[TextPart | FilePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """One message; frames may stand in one user message of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=64)]
    name: Name | None = None


class ChatBody(Ask):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class CompressBody(BaseModel):
    """``POST /v1/compress``: options as those of ``latentwire compress``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | Annotated[list[str], Field(min_length=1)]
    model: Name | None = None
    codec: CodecName = "i8"
    latents: Annotated[int, Field(ge=1, le=4096)] | None = None
    ratio: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)] | None = None
    max_bytes: Annotated[int, Field(ge=1, le=1 << 26)] | None = None
    on_too_long: TooLong = "error"
    protect: Protect = "both"


def refuse_extras(body: Ask) -> None:
    """Look at fields that the model does not declare.

    Raises:
        ParamError: 2131 one that asks for what is not served; 2130 one that nobody knows.
    """
    extras: dict[str, Any] = body.model_extra or {}
    for name, value in extras.items():
        if name not in NEUTRAL:
            error = InputError(2130, "unknown field", where=f"field {name[:100]!r}", fix="see docs/server.md")
            raise ParamError(error, name[:100])
        if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL[name]) and not (
            isinstance(value, float) and value == 0 and 0 in NEUTRAL[name]
        ):
            raise unsupported(name, f"{name} is not served")
