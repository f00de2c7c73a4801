"""Prompts to answers: batches, prefill, the decode loop, stop rules.

In: requests (a context as latents or tokens, and question tokens). Out: answers, or pieces of them as they come.
Results do not depend on the requests that share a batch. Knows nothing of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..core.errors import LatentError, LatentWireError, RowError
from ..core.prompt import Prompt, latent_prompt, text_prompt
from ..engines.base import F32, Engine
from ..engines.buffers import Buffers
from ..engines.prefix import latent_prefix, prefill_with, prefix_info
from .adapt import adapt
from .answer import Answer, Growing
from .memory import Room
from .options import GenerateOptions
from .slots import Slots, micro_batches
from .splice import splice
from .tokenizer import TextTokenizer

CAPACITY_STEP: Final = 32
"""Cache capacities are multiples of this, so that buffers are used again."""


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


class Generator:
    """Greedy generation on one engine. Keeps the buffers of the last batch for the next one."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._buffers: Buffers | None = None
        self._room = Room()
        self._llm = engine.bundle.manifest.llm
        self._fixed = engine.bundle.manifest.capacity
        self._task_tokens = engine.bundle.manifest.adapter.task_tokens
        self._front = engine.bundle.manifest.front_rows
        self._crossed = "cross" in engine.bundle.manifest.graphs
        self._prefix = prefix_info(engine.bundle.manifest)

    def answers(
        self,
        requests: Sequence[Request],
        options: GenerateOptions,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer | LatentWireError]:
        """One answer or one error per request, in the order given.

        Args:
            requests: prompts that fit, see ``check``.
            options: limits and stop rules.
            done: hears how many requests a finished batch held.
        """
        out: list[Answer | LatentWireError | None] = [None] * len(requests)
        for batch in self._batches(requests, options):
            answers = self._room.run([requests[i] for i in batch], lambda part: self._answer(part, options))
            for index, answer in zip(batch, answers, strict=True):
                out[index] = answer
            done(len(batch))
        return [found for found in out if found is not None]

    def stream(self, requests: Sequence[Request], options: GenerateOptions) -> Iterator[tuple[int, str]]:
        """``(request, piece of text)`` as soon as the piece is certain.

        Raises:
            LatentError: 3001; rows that share the batch end with it.
        """
        for batch in self._batches(requests, options):
            growing = self._growing(len(batch), options)
            for row, piece in self._run([requests[i] for i in batch], growing, options):
                yield batch[row], piece

    def check(self, request: Request, options: GenerateOptions, where: str) -> None:
        """Refuse a prompt that leaves no room for its answer.

        Raises:
            RowError: 2006.
        """
        need = self._need(request, options)
        prompt, longest = need - options.max_new_tokens, self._engine.max_prompt
        fix = "ask a shorter question, send fewer latents or lower --max-new-tokens"
        if need > self._window:
            expected = f"expected at most {self._window} positions with the answer, got {need}"
            raise RowError(2006, "prompt longer than the LLM's window", where=where, expected=expected, fix=fix)
        if longest and prompt > longest:
            expected = f"expected at most {longest} positions, got {prompt}"
            fix = "ask a shorter question, send fewer latents, or export with a larger --length"
            raise RowError(2006, "prompt longer than the compiled plan takes", where=where, expected=expected, fix=fix)

    @property
    def _window(self) -> int:
        """Most positions of a prompt with its answer, slots in the cache included."""
        return min(self._fixed, self._llm.max_positions) if self._fixed else self._llm.max_positions

    def _need(self, request: Request, options: GenerateOptions) -> int:
        return self._prompt_positions(request) + options.max_new_tokens

    def _added(self, request: Request) -> int:
        """Cache slots that the latents take beside their rows."""
        return self._prefix.added(len(request.latents)) if self._prefix else 0

    def _prompt_positions(self, request: Request) -> int:
        front = self._front if len(request.latents) else 0
        context = self._added(request) + front + request.context_positions
        return len(self._llm.bos) + context + self._task_tokens + len(request.question)

    def _batches(self, requests: Sequence[Request], options: GenerateOptions) -> list[list[int]]:
        size = 4 if self._llm.dtype == "float32" else 2
        a_position = 2 * self._llm.num_layers * self._llm.num_kv_heads * self._llm.head_dim * size
        positions = max(1, options.kv_bytes // a_position)
        rows = min(options.batch_size, self._engine.max_batch or options.batch_size)
        if self._fixed:  # Every row takes the whole cache, however short it is.
            rows = min(rows, max(1, positions // self._fixed))
        if self._prefix is None:
            return micro_batches([self._need(r, options) for r in requests], rows, positions)
        batches: list[list[int]] = []
        # Rows with slots and rows without begin differently: they share no batch.
        for latents in (True, False):
            own = [i for i, r in enumerate(requests) if bool(len(r.latents)) == latents]
            for batch in micro_batches([self._need(requests[i], options) for i in own], rows, positions):
                found = [own[i] for i in batch]
                fits = self._joint([requests[i] for i in found]) + options.max_new_tokens <= self._window
                batches += [found] if fits else [[i] for i in found]
        return batches

    def _joint(self, requests: Sequence[Request]) -> int:
        """Positions of the longest beginning and the longest rest together: both are padded on the right."""
        assert self._prefix is not None
        manifest = self._engine.bundle.manifest
        heads = [self._prefix.head(manifest, len(r.latents)) + self._added(r) for r in requests]
        rests = [self._prompt_positions(r) - head for r, head in zip(requests, heads, strict=True)]
        return max(heads) + max(rests)

    def _answer(self, requests: Sequence[Request], options: GenerateOptions) -> list[Answer | LatentWireError]:
        growing = self._growing(len(requests), options)
        try:
            for _ in self._run(requests, growing, options):
                pass
        except LatentError as e:
            if e.code != 3001:
                raise
            # The engine names a bad row, but its neighbours stopped with it: run each alone.
            return [e] if len(requests) == 1 else [self._answer([r], options)[0] for r in requests]
        return [self._finished(r, g) for r, g in zip(requests, growing, strict=True)]

    def _finished(self, request: Request, growing: Growing) -> Answer:
        prompt = self._prompt_positions(request)
        stop = growing.stopped or "length"
        context = request.context_positions + self._added(request)
        return Answer(growing.text, stop, growing.new_tokens, prompt, context)

    def _growing(self, count: int, options: GenerateOptions) -> list[Growing]:
        eos = frozenset(self._llm.eos)
        return [Growing(self._tokenizer.decode, eos, options.stop, options.max_new_tokens) for _ in range(count)]

    def _run(
        self, requests: Sequence[Request], growing: Sequence[Growing], options: GenerateOptions
    ) -> Iterator[tuple[int, str]]:
        """Prefill, then decode until every row has stopped. Yields ``(row, piece)``."""
        buffers = self._prefilled(requests, options)
        slots = Slots(range(len(requests)))
        while True:
            tokens = buffers.next_token.tolist()
            for row in slots.running:
                if piece := growing[row].feed(tokens[row]):
                    yield row, piece
                if growing[row].stopped:
                    slots.finish(row)
            if not slots.running:
                return
            self._engine.decode(buffers)

    def _prefilled(self, requests: Sequence[Request], options: GenerateOptions) -> Buffers:
        rows, latents = adapt(self._engine, [r.latents for r in requests])
        embeds, lengths = splice(self._engine, [self._prompt(r, latents.shape[1]) for r in requests], rows)
        held = [len(r.latents) for r in requests]
        prefix = latent_prefix(self._engine, latents, held) if any(held) else None
        if prefix is None:
            buffers = self._alloc(len(requests), embeds.shape[1] + options.max_new_tokens)
            buffers.cross = self._engine.cross(latents) if self._crossed else {}
            self._engine.prefill(buffers, embeds, lengths)
            return buffers
        buffers = self._alloc(len(requests), self._joint(requests) + options.max_new_tokens)
        buffers.cross = self._engine.cross(latents) if self._crossed else {}
        prefill_with(self._engine, buffers, embeds, lengths, prefix)
        return buffers

    def _prompt(self, request: Request, capacity: int) -> Prompt:
        bos, k, question = self._llm.bos, self._task_tokens, request.question
        if len(request.latents):
            rest = (*request.tokens, *question)
            return latent_prompt(bos, len(request.latents), capacity, k, rest, self._front)
        return text_prompt(bos, request.tokens, capacity, k, question)

    def _alloc(self, batch: int, positions: int) -> Buffers:
        capacity = self._fixed or min(-(-positions // CAPACITY_STEP) * CAPACITY_STEP, self._llm.max_positions)
        held = self._buffers
        if held is None or (held.batch, held.capacity) != (batch, capacity):
            self._buffers = None  # free the old ones first
            self._buffers = held = self._engine.alloc(batch, capacity)
        return held


def no_latents() -> F32:
    """The latents of a context that is text: none."""
    return np.empty((0, 0), np.float32)
