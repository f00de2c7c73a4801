"""Items -> tensors: encoder input once, one prefix tree for each LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.prompt import EXAMPLE_TEMPLATE, Encode, join, question_ids
from .config import TASKS
from .crops import View, view
from .data import Item, Question, cloze
from .keeping import UNKNOWN, wanted_tokens
from .latents import Choice, draw
from .lesson import Lesson, lesson
from .llm import Special
from .tree import Branch, Tree, build

CUE, CONTINUATION = 8, 24
"""Tokens given and asked for in a reconstruction branch."""
AHEAD = (32, 64)
"""Tokens asked for in a continuation branch, at least and at most; fewer where the passage ends."""
VIEW_DRAW = (0, 2)
"""What an item's seed ends in when its cut is drawn, so that its branches are drawn as without a cut."""
LATENT_DRAW, ROUNDING_DRAW = (0, 1), (0, 3)
"""What the seeds of a micro-batch's M and of its rounded texts end in, so that they are not its items' seeds."""


class Reader(Protocol):
    """What batching needs to know of one LLM."""

    special: Special

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Limits:
    """Sizes that shape a batch; ``latents`` is M, ``task_tokens`` the rows of one task.

    ``crop``: passages are cut to this many tokens at a random place; 0: to ``max_tokens`` from their beginning.
    ``choices``: one of them is drawn as M of the whole micro-batch (see ``latents.py``); empty: always ``latents``.
    ``stride``: ids of the encoder to one of its states; ``max_tokens`` counts ids, ``crop`` states.
    ``rounding``: share of texts whose latents pass the quantiser.
    ``front``: learned rows before the latents; they come behind the rows of ``tasks`` tasks.
    """

    latents: int
    task_tokens: int
    max_tokens: int
    branch_tokens: int
    reconstruct_share: float = 0.0
    continue_share: float = 0.0
    crop: int = 0
    choices: tuple[Choice, ...] = ()
    stride: int = 1
    rounding: float = 0.0
    front: int = 0
    tasks: int = len(TASKS)

    @property
    def window(self) -> int:
        """States that fit the encoder: also what is read of a text as tokens of an LLM."""
        return self.max_tokens // self.stride


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        input_ids: int64 [B,S], encoder tokens, right padded.
        lengths: int64 [B].
        slots: int64 [M], ``arange(M)``: as many latents as the text with most of them has.
        counts: int64 [B], latents of each text, at most M and at most its tokens.
        rounded: bool [B], whose latents pass the quantiser.
        trees: one prefix tree per LLM, in the LLMs' order; none where only latents are learned.
        lesson: the same texts for a teacher encoder; None without one.
        wanted: int64 [B,S], whether a token stands in an answer, see ``keeping``; None where nobody learns it.
    """

    input_ids: Tensor
    lengths: Tensor
    slots: Tensor
    counts: Tensor
    rounded: Tensor
    trees: tuple[Tree, ...]
    lesson: Lesson | None = None
    wanted: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; does not wait for the copy."""
        return self._each(lambda t: t.to(device, non_blocking=True), [t.to(device) for t in self.trees])

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while the host goes on."""
        return self._each(Tensor.pin_memory, [t.pin_memory() for t in self.trees])

    def _each(self, change: Callable[[Tensor], Tensor], trees: Sequence[Tree]) -> Batch:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed: dict[str, Any] = {n: change(v) for n, v in values.items() if isinstance(v, Tensor)}
        learned = None if self.lesson is None else self.lesson.each(change)
        return replace(self, **changed, trees=tuple(trees), lesson=learned)


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-pad with 0: ids int64 [B,S] and lengths int64 [B]."""
    lengths = torch.tensor([len(r) for r in rows])
    out = torch.zeros(len(rows), max(1, int(lengths.max())), dtype=torch.int64)
    for b, row in enumerate(rows):
        out[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out, lengths


def task_range(task: str, capacity: int, task_tokens: int) -> range:
    """Adapter rows of one task, behind ``capacity`` latents."""
    start = capacity + TASKS.index(task) * task_tokens
    return range(start, start + task_tokens)


def front_range(capacity: int, limits: Limits) -> range:
    """Rows that stand before the latents, behind those of all tasks."""
    start = capacity + limits.tasks * limits.task_tokens
    return range(start, start + limits.front)


def example_ids(llm: Reader, example: Item) -> list[int]:
    """A worked example, the first question of an item with its first answer, as it stands between BOS and a context."""
    question = example.questions[0]
    return llm.encode(
        EXAMPLE_TEMPLATE.format(context=example.context, question=question.text, answer=question.answers[0])
    )


def answer_branch(llm: Reader, question: Question, answer: str, rows: range, task: str = "answer") -> Branch:
    """Task rows, question, anchor; the target is the answer and EOS."""
    prompt = join([rows, question_ids(llm.encode, question.text)])
    target = (*llm.encode(" " + answer), llm.special.eos[0])
    return Branch(prompt, target, task)


def make_batch(
    items: Sequence[Item],
    encode: Encode,
    llms: Sequence[Reader],
    limits: Limits,
    seed: Sequence[int],
    text: bool = False,
    teacher: Tokenizer | None = None,
    example: Item | None = None,
    keep: bool = False,
) -> Batch:
    """Draw branches for each item and pack them.

    Args:
        items: contexts.
        encode: the encoder's tokenizer.
        llms: the LLMs that will read the latents.
        limits: sizes.
        seed: everything random is drawn from these numbers.
        text: the prefix is the context as tokens (teacher, format stage) instead of latents.
        teacher: tokenizer of an encoder that makes the same latents, to learn from.
        example: a worked example that stands in front of every context, as text.
        keep: label the tokens that stand in answers.
    """
    views = [_view(item, np.random.default_rng([*seed, b, *VIEW_DRAW]), encode, limits) for b, item in enumerate(items)]
    contexts = [encode(own.item.context)[: limits.max_tokens] for own in views]
    input_ids, lengths = pad(contexts)
    drawn = [_draw(own.item, np.random.default_rng([*seed, b]), limits) for b, own in enumerate(views)]
    rule = draw(limits.choices, limits.latents, [*seed, *LATENT_DRAW])
    states = [-(-len(c) // limits.stride) for c in contexts]
    capacity = rule.capacity(states)
    sizes = _Latents(tuple(rule(n) for n in states), 0 if text else capacity)
    openings = [example_ids(llm, example) if example else [] for llm in llms]
    trees = tuple(
        _tree(llm, views, drawn, sizes, limits, text, opening) for llm, opening in zip(llms, openings, strict=True)
    )
    rounded = np.random.default_rng([*seed, *ROUNDING_DRAW]).random(len(items)) < limits.rounding
    counts, slots = torch.tensor(sizes.counts), torch.arange(capacity)
    # A character that the window splits is not the teacher's to read.
    texts = [own.item.context.encode()[: limits.max_tokens].decode(errors="ignore") for own in views] if teacher else []
    learned = lesson(teacher, texts) if teacher else None
    labels = None
    if keep:
        read = zip((v.item for v in views), contexts, strict=True)
        rows = [wanted_tokens(item.context, item.questions, encode, len(ids)) for item, ids in read]
        labels = pad_sequence([torch.tensor(row) for row in rows], True, UNKNOWN)
    return Batch(input_ids, lengths, slots, counts, torch.from_numpy(rounded), trees, learned, labels)


def _view(item: Item, rng: np.random.Generator, encode: Encode, limits: Limits) -> View:
    size = min(limits.crop or limits.window, limits.window)

    def states(text: str) -> list[int]:
        return encode(text)[:: limits.stride]

    return view(item, rng, states, size=size, cropped=limits.crop > 0, continue_share=limits.continue_share)


@dataclass(frozen=True)
class _Latents:
    """Latents of each text, and the adapter rows before the task rows (0 where text stands instead)."""

    counts: tuple[int, ...]
    capacity: int


@dataclass(frozen=True)
class _Drawn:
    """Questions with the chosen answer, where cues start (as a share of the text), tokens of a continuation."""

    questions: tuple[tuple[Question, str], ...]
    cues: tuple[float, ...]
    ahead: int = 0


def _draw(item: Item, rng: np.random.Generator, limits: Limits) -> _Drawn:
    if item.questions:
        order = rng.permutation(len(item.questions))[:6]
        chosen = [item.questions[i] for i in order]
        return _Drawn(tuple((q, q.answers[rng.integers(len(q.answers))]) for q in chosen), ())
    cues = tuple(float(c) for c in rng.random(3) if rng.random() < limits.reconstruct_share)
    blanks = 0 if limits.reconstruct_share == 1.0 else 4 - len(cues)
    asked = tuple((q, q.answers[0]) for q in cloze(item.context, rng, blanks))
    # A passage without any blank to fill still teaches by reconstruction.
    cues = cues if cues or asked else (float(rng.random()),)
    return _Drawn(asked, cues, int(rng.integers(AHEAD[0], AHEAD[1] + 1)))


def _tree(
    llm: Reader,
    views: Sequence[View],
    drawn: Sequence[_Drawn],
    sizes: _Latents,
    limits: Limits,
    text: bool,
    opening: Sequence[int],
) -> Tree:
    prefixes, branches = [], []
    for seen, own_draw, count in zip(views, drawn, sizes.counts, strict=True):
        item = seen.item
        own = llm.encode(item.context)[: limits.window]
        context = [own] if text else [front_range(sizes.capacity, limits), range(count)]
        prefixes.append(join([llm.special.bos, opening, *context]))
        answer, repeat, go_on = (task_range(task, sizes.capacity, limits.task_tokens) for task in TASKS)
        task = "answer" if item.questions else "cloze"
        ahead = tuple(llm.encode(seen.rest)[: own_draw.ahead]) if seen.rest else ()
        candidates = [Branch(join([go_on]), ahead, "continue")] if ahead else []
        candidates += [answer_branch(llm, q, a, answer, task) for q, a in own_draw.questions]
        cues = [b for c in own_draw.cues if (b := _reconstruct(own, c, repeat))]
        # In a short crop several cues begin at the same token; the same branch twice would teach nothing more.
        candidates += list({(*b.prompt.ids.tolist(), *b.target): b for b in cues}.values()) if limits.crop else cues
        branches.append(_fit(candidates, limits.branch_tokens))
    return build(prefixes, branches)


def _reconstruct(own: Sequence[int], share: float, rows: range) -> Branch | None:
    if len(own) < CUE + 2:
        return None
    start = int(share * max(1, len(own) - CUE - CONTINUATION))
    cue, target = own[start : start + CUE], own[start + CUE : start + CUE + CONTINUATION]
    return Branch(join([rows, cue]), tuple(target), "reconstruct")


def _fit(candidates: Sequence[Branch], most: int) -> list[Branch]:
    kept: list[Branch] = []
    used = 0
    for branch in candidates:
        size = len(branch.prompt) + len(branch.target) - 1
        if kept and used + size > most:
            continue
        kept.append(branch)
        used += size
    return kept
