"""One prompt before it has a place in a batch: what is asked, and how many positions it takes.

In: a bundle's manifest and an engine's limits. Out: requests and their sizes. No arrays but the latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import RowError
from ..core.prompt import Prompt, latent_prompt, text_prompt
from ..engines.base import F32, Engine
from ..engines.prefix import prefix_info
from .options import GenerateOptions


@dataclass(frozen=True)
class Request:
    """One question about one context.

    Attributes:
        latents: f32 [m,d_z]; no rows where the context is text.
        tokens: the context as LLM tokens; beside latents only what came verbatim with them.
        question: LLM tokens of the question and the anchor after it.
    """

    latents: F32
    tokens: tuple[int, ...]
    question: tuple[int, ...]

    @property
    def context_positions(self) -> int:
        """Positions that the context takes in the prompt."""
        return len(self.latents) + len(self.tokens)


class Sizes:
    """Positions of requests on one engine, and the layout of their prompts."""

    def __init__(self, engine: Engine) -> None:
        manifest = engine.bundle.manifest
        self._manifest, self._llm = manifest, manifest.llm
        self._longest = engine.max_prompt
        self._task_tokens = manifest.adapter.task_tokens
        self._prefix = prefix_info(manifest)

    @property
    def window(self) -> int:
        """Most positions of a prompt with its answer, slots in the cache included."""
        fixed = self._manifest.capacity
        return min(fixed, self._llm.max_positions) if fixed else self._llm.max_positions

    def added(self, request: Request) -> int:
        """Cache slots that the latents take beside their rows."""
        return self._prefix.added(len(request.latents)) if self._prefix else 0

    def prompt(self, request: Request) -> int:
        """Positions of the whole prompt, slots in the cache included."""
        front = self._manifest.front_rows if len(request.latents) else 0
        context = self.added(request) + front + request.context_positions
        return len(self._llm.bos) + context + self._task_tokens + len(request.question)

    def head(self, request: Request) -> int:
        """Positions that are in the cache before the rest of the prompt is read; 0: it is read at once."""
        if self._prefix is None or not len(request.latents):
            return 0
        return self._prefix.head(self._manifest, len(request.latents)) + self.added(request)

    def kind(self, request: Request) -> int:
        """Requests of two kinds begin differently and share no batch."""
        return int(self._prefix is not None and len(request.latents) > 0)

    def layout(self, request: Request, capacity: int) -> Prompt:
        """The prompt's positions, where the adapter was given room for ``capacity`` latents."""
        bos, k, question = self._llm.bos, self._task_tokens, request.question
        if len(request.latents):
            rest = (*request.tokens, *question)
            return latent_prompt(bos, len(request.latents), capacity, k, rest, self._manifest.front_rows)
        return text_prompt(bos, request.tokens, capacity, k, question)

    def check(self, request: Request, options: GenerateOptions, where: str) -> None:
        """Refuse a prompt that leaves no room for its answer.

        Raises:
            RowError: 2006.
        """
        prompt = self.prompt(request)
        need = prompt + options.max_new_tokens
        fix = "ask a shorter question, send fewer latents or lower --max-new-tokens"
        if need > self.window:
            expected = f"expected at most {self.window} positions with the answer, got {need}"
            raise RowError(2006, "prompt longer than the LLM's window", where=where, expected=expected, fix=fix)
        if self._longest and prompt > self._longest:
            expected = f"expected at most {self._longest} positions, got {prompt}"
            fix = "ask a shorter question, send fewer latents, or export with a larger --length"
            raise RowError(2006, "prompt longer than the compiled plan takes", where=where, expected=expected, fix=fix)


def no_latents() -> F32:
    """The latents of a context that is text: none."""
    return np.empty((0, 0), np.float32)
