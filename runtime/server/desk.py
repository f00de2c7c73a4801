"""The backend: prompts to answers on the scheduler's service.

In: one prompt with its wish. Out: its events, from the thread that runs the engine. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from ...core.prompt import question_ids
from ..answer import Answer
from ..encode import clean
from ..options import GenerateOptions
from ..pipeline import Pipeline
from ..request import Request, no_latents
from ..scheduler import loop
from ..scheduler.service import Service
from .answering import Event, Wish
from .prompts import Asked
from .replies import Choice


class Desk:
    """Answers on the rows of one engine.

    Args:
        reader: makes prompts (tokenizers, frames); used by the caller's thread.
        pipe: runs them; used by the service's thread, and closed with the desk.
        rows: most answers that run at once.
        waiting: most answers that wait.
    """

    def __init__(self, reader: Pipeline, pipe: Pipeline, rows: int, waiting: int) -> None:
        self._reader, self._pipe = reader, pipe
        self._service = Service(pipe.engine, pipe.tokenizer, rows=rows, waiting=waiting)

    def submit(self, asked: Asked, wish: Wish, emit: Callable[[Event], None]) -> Callable[[], None]:
        """As ``answering.Backend``."""
        options = GenerateOptions(
            wish.max_tokens, wish.stop, temperature=wish.temperature, top_p=wish.top_p, seed=wish.seed
        )
        request = prepared(self._reader, asked, options)
        return self._service.send(request, options, lambda event: emit(_told(event)), asked.param)

    @property
    def running(self) -> int:
        """Answers that hold a row."""
        return self._service.running

    @property
    def waiting(self) -> int:
        """Answers that wait for one."""
        return self._service.waiting

    def close(self) -> None:
        """Stop; what is left ends with an error."""
        self._service.close()
        self._pipe.close()
        self._reader.close()


def prepared(reader: Pipeline, asked: Asked, options: GenerateOptions) -> Request:
    """A prompt as tokens and latents.

    Raises:
        FrameError, ModelError, RowError: as ``Pipeline.request``.
    """
    if asked.context:
        return reader.request(asked.context, asked.prompt, options, asked.param)
    text, encode = clean(asked.prompt, asked.param), reader.tokenizer.encode
    ids = encode(text) if asked.context is None else question_ids(encode, text)
    request = Request(no_latents(), (), tuple(ids))
    reader.check(request, options, asked.param)
    return request


def _told(event: loop.Event) -> Event:
    if isinstance(event, Answer):
        return Choice(event.text, event.stop, event.new_tokens, event.prompt_positions)
    return event
