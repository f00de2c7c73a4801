"""Prompts of a request as tokens and latents: the last step before the scheduler. Knows nothing of HTTP."""

from __future__ import annotations

from ...core.prompt import question_ids
from ..encode import clean
from ..options import GenerateOptions
from ..pipeline import Pipeline
from ..request import Request, no_latents
from .prompts import Asked


def prepared(reader: Pipeline, asked: Asked, options: GenerateOptions) -> Request:
    """A prompt as the scheduler takes it; that it leaves room for its answer is checked there.

    Args:
        reader: tokenizers, and what turns codes into latents; not safe for two threads at once.
        asked: texts and bytes.
        options: of its answer.

    Raises:
        FrameError, ModelError, RowError: as ``Pipeline.request``.
    """
    if asked.context or isinstance(asked.context, bytes):  # an empty text is no context, no bytes are no frame
        return reader.request(asked.context, asked.prompt, options, asked.param)
    text, encode = clean(asked.prompt, asked.param), reader.tokenizer.encode
    ids = encode(text) if asked.context is None else question_ids(encode, text)
    return Request(no_latents(), (), tuple(ids))
