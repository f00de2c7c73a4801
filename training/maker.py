"""Number of a micro-batch -> its tensors, as a pure function of (config, data, number).

Holds tokenizers and text, no model: it is copied into worker processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from .batch import Batch, Limits, make_batch
from .bundles import KEEP_TERM, needs_lesson, needs_llms, needs_teacher, weights
from .config import Config
from .data import Item, Sampler, worked_example
from .fsq import rounding_share
from .lesson import byte_ids
from .llm import LMWrapper, Special
from .stages import Span, at
from .teacher_cache import branch_keys
from .tree import Tree

STREAMS = ("questions", "prose")
EXAMPLE_DRAW = 2
"""What the seed of a worked example's draw has where that of a micro-batch has 0 (format) or 1."""


@dataclass
class TextReader:
    """Tokens of one LLM without the LLM."""

    tokenizer: Tokenizer
    special: Special

    @classmethod
    def of(cls, llm: LMWrapper) -> TextReader:
        """What batching needs to know of ``llm``."""
        return cls(llm.tokenizer, llm.special)

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


@dataclass(frozen=True)
class Work:
    """One micro-batch as the training loop takes it.

    Attributes:
        number: which one; step ``number // (batch / micro_batch)``.
        batch: what the encoder and the LLMs read.
        teachers: the same branches behind the full text, one tree for each LLM; empty without distillation.
        origin: stream and item index of every context.
        tokens: encoder tokens, padding not counted.
    """

    number: int
    batch: Batch
    teachers: tuple[Tree, ...]
    origin: tuple[tuple[str, int], ...]
    tokens: int

    def to(self, device: torch.device) -> Work:
        """The same on another device; does not wait for the copy."""
        teachers = tuple(t.to(device) for t in self.teachers)
        return Work(self.number, self.batch.to(device), teachers, self.origin, self.tokens)

    def untaught(self) -> Work:
        """The same where no teacher had to read."""
        return replace(self, teachers=())

    def pin_memory(self) -> Work:
        """The same in page-locked memory."""
        teachers = tuple(t.pin_memory() for t in self.teachers)
        return Work(self.number, self.batch.pin_memory(), teachers, self.origin, self.tokens)


class Maker:
    """Makes the micro-batches of one run.

    Args:
        config: the run's config.
        questions: contexts with questions.
        prose: passages; may be empty.
        encoder: tokens of the LLM that the encoder was made of, or that a byte encoder's teacher was made of.
        readers: one for each LLM.

    Raises:
        InputError: 2104 fewer contexts than ``micro_batch``.
    """

    def __init__(
        self,
        config: Config,
        questions: Sequence[Item],
        prose: Sequence[Item],
        encoder: TextReader,
        readers: Sequence[TextReader],
    ) -> None:
        self.config, self.encoder, self.readers = config, encoder, tuple(readers)
        self.encode = byte_ids if config.encoder_type == "bytes" else encoder.encode
        self.spans = config.spans()
        self.items = [questions]
        if prose and max(self._prose_share(span) for span in self.spans) > 0:
            self.items.append(prose)
        self.samplers = [
            Sampler([len(i.context) for i in items], config.micro_batch, config.seed + stream)
            for stream, items in enumerate(self.items)
        ]

    def __call__(self, number: int) -> Work:
        """Micro-batch ``number`` of the main stages."""
        span = self.span(number)
        limits = self._limits(span, span.crop(number // self._per_step))
        if self.config.fsq_profile:
            limits = replace(limits, rounding=self._rounding(span, number // self._per_step))
        stream, indices = self._chosen(number)
        items = [self.items[stream][i] for i in indices]
        seed = (self.config.seed, 1, number)
        terms = weights(span.stage.bundle or self.config.bundle, self.config.kd_weight)
        # Where latents alone are learned no LLM reads anything.
        readers = self.readers if needs_llms(terms) else ()
        teacher = self.encoder.tokenizer if needs_lesson(terms) else None
        example = self._example(span, number) if stream == 0 else None
        keep = KEEP_TERM in terms
        batch = make_batch(items, self.encode, readers, limits, seed, teacher=teacher, example=example, keep=keep)
        teachers: tuple[Tree, ...] = ()
        if needs_teacher(terms):
            teachers = make_batch(items, self.encode, readers, limits, seed, text=True, example=example).trees
        if self.config.teacher_cache:
            teachers = tuple(replace(tree, keys=branch_keys(tree)) for tree in teachers)
        origin = tuple((STREAMS[stream], i) for i in indices)
        return Work(number, batch, teachers, origin, int(batch.lengths.sum()))

    def format(self, number: int) -> Batch:
        """Micro-batch ``number`` of the format stage: full text, and every task that some stage asks for."""
        shares = [self._share(span, "continue_share") for span in self.spans]
        limits = self._limits(Span(self.spans[0].stage, 0, 1), 0, continue_share=max(shares))
        # Passages that are only repeated in the first stage ask something here, or answers would never be asked for.
        if limits.reconstruct_share == 1.0:
            limits = replace(limits, reconstruct_share=0.5)
        stream, indices = self._chosen(number)
        items = [self.items[stream][i] for i in indices]
        return make_batch(items, self.encode, self.readers, limits, (self.config.seed, 0, number), text=True)

    def span(self, number: int) -> Span:
        """The stage that a micro-batch belongs to."""
        return at(self.spans, number // self._per_step)

    def item(self, origin: tuple[str, int]) -> Item:
        """The item that a context of ``Work`` came from."""
        stream, index = origin
        return self.items[STREAMS.index(stream)][index]

    @property
    def _per_step(self) -> int:
        return self.config.batch // self.config.micro_batch

    def _share(self, span: Span, name: str) -> float:
        own: float = getattr(span.stage, name)
        return own if own >= 0 else float(getattr(self.config, name))

    def _prose_share(self, span: Span) -> float:
        if KEEP_TERM in weights(span.stage.bundle or self.config.bundle, self.config.kd_weight):
            return 0.0  # nobody asked anything of passages
        return self._share(span, "prose_share")

    def _limits(self, span: Span, crop: int, continue_share: float | None = None) -> Limits:
        config = self.config
        return Limits(
            config.latent_len,
            config.task_tokens,
            config.max_tokens,
            config.branch_tokens,
            reconstruct_share=self._share(span, "reconstruct_share"),
            continue_share=self._share(span, "continue_share") if continue_share is None else continue_share,
            crop=crop,
            choices=span.stage.latent_choices or config.latent_choices,
            stride=config.stride,
            front=config.front_rows,
            tasks=len(config.tasks),
        )

    def _example(self, span: Span, number: int) -> Item | None:
        """A question about another text, drawn for this micro-batch, where one opens it."""
        rng = np.random.default_rng((self.config.seed, EXAMPLE_DRAW, number))
        if rng.random() >= self._share(span, "example_share"):
            return None
        item = self.items[0][int(rng.integers(len(self.items[0])))]
        return worked_example(item, int(rng.integers(len(item.questions))))

    def _rounding(self, span: Span, step: int) -> float:
        if span.stage.fsq_share >= 0:
            return span.stage.fsq_share
        return rounding_share(step, self.config.steps, self.config.fsq_share, self.config.fsq_ramp)

    def _chosen(self, number: int) -> tuple[int, list[int]]:
        """Stream and item indices. Prose takes its share evenly: every second micro-batch at a share of one half."""
        prose = 0
        for span in self.spans:
            first, last = span.start * self._per_step, span.end * self._per_step
            share = self._prose_share(span) if len(self.items) > 1 else 0.0
            inside = min(number, last) - first
            if number < last or span is self.spans[-1]:
                inside = number - first
                before, after = math.floor(inside * share), math.floor((inside + 1) * share)
                stream = int(after > before)
                index = prose + before
                return stream, self.samplers[stream](index if stream else number - index)
            prose += math.floor(inside * share)
        raise AssertionError("a run has at least one stage")
