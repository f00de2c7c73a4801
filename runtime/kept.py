"""What a frame keeps of its text, asked of the LLM that reads it.

For every latent: the tokens of the LLM nearest to the row that the adapter makes of it. With the text: names, numbers
and long words are left out of their sentences one at a time, and the LLM is asked for them, with the latents and
without. With a question: how much worse the answer becomes when one latent is exchanged for the mean of the others.
Engines do not give attention weights, so none are shown; this last figure measures what they are usually read for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from ..core.errors import InputError
from ..core.prompt import CLOZE_TEMPLATE, question_ids
from ..core.salient import span_starts
from ..engines.base import F32
from ..engines.rarity import token_rarity
from .message import Message
from .options import GenerateOptions
from .pipeline import Pipeline
from .request import Request, no_latents
from .splice import embeddings
from .surprise import surprise

NEAR: Final = 3
"""Tokens shown of a latent."""
WORDS: Final = 32
"""Words asked for, spread over the text."""
BLOCK: Final = 8192
"""Embeddings compared at once."""
_SENTENCE: Final = re.compile(r"[^.!?\n]+(?:[.!?](?=\S)[^.!?\n]*)*[.!?]*")
_WORD: Final = re.compile(r"\b(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d,.:]*\d|\d|[a-z][\w'-]{5,})\b")
_LONGEST: Final = 240
"""Characters of a sentence that is asked about."""


@dataclass(frozen=True)
class Near:
    """A token near a latent, and the cosine of their embeddings."""

    token: str
    cosine: float


@dataclass(frozen=True)
class Latent:
    """One latent.

    Attributes:
        index: in the frame.
        near: tokens, nearest first.
        start, stop: characters of the text that it stands for; None without the text.
        influence: nats a token that the answer loses without it; None without a question.
    """

    index: int
    near: tuple[Near, ...]
    start: int | None = None
    stop: int | None = None
    influence: float | None = None


@dataclass(frozen=True)
class Word:
    """One word or name that was asked for.

    Attributes:
        start, stop: characters of the text.
        nats: a token of it, with the latents.
        without: the same with nothing.
        verbatim: it also travels as it is.
    """

    start: int
    stop: int
    nats: float
    without: float
    verbatim: bool

    @property
    def kept(self) -> float:
        """Share of the surprise that the latents take away: 1 all, 0 none, below 0 they mislead."""
        return (self.without - self.nats) / max(self.without, 1e-9)


@dataclass(frozen=True)
class Kept:
    """Everything that is drawn.

    Attributes:
        llm: who reads.
        bytes: of the frames.
        latents: one by one.
        verbatim: strings that travel as they are.
        text: the original, or None.
        words: of the text.
        question, answer: asked and said; empty without a question.
    """

    llm: str
    bytes: int
    latents: tuple[Latent, ...]
    verbatim: tuple[str, ...]
    text: str | None = None
    words: tuple[Word, ...] = ()
    question: str = ""
    answer: str = ""

    @property
    def share(self) -> float | None:
        """Surprise taken away over all words together."""
        whole = sum(word.without for word in self.words)
        return sum(w.without - w.nats for w in self.words) / whole if whole else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        words = [{**asdict(w), "kept": round(w.kept, 4)} for w in self.words]
        return {**asdict(self), "words": words, "share": self.share}


def kept(pipe: Pipeline, message: Message, text: str | None = None, question: str = "") -> Kept:
    """Ask the LLM what the frames of one text hold.

    Args:
        pipe: with all parts of the bundle; its encoder must be the frames'.
        message: frames.
        text: what they were made of, where that is at hand.
        question: also find out which latents its answer hangs on.

    Raises:
        InputError: 2111 frames without latents. ModelError: 3101 frames of another encoder.
        LatentError: 3001, 3002. RowError: 2006 a text or question that does not fit.
    """
    if message.is_text:
        raise InputError(2111, "nothing to draw: the frame holds the text itself", expected="expected latents")
    asked = pipe.request(message, question or "?", GenerateOptions(), "question")
    latents = nearest(pipe, asked.latents)
    found = Kept(pipe.bundle.manifest.llm.name, len(message.pack()), latents, message.spans, text)
    if text is not None:
        found = replace(found, latents=placed(pipe, latents, text, len(message.frames)), words=words(pipe, asked, text))
        found = replace(found, words=tuple(_marked(w, text, message.spans) for w in found.words))
    if question:
        answer = pipe.generate([message.pack()], [question])[0]
        weights = influence(pipe, asked, answer)
        held = tuple(replace(one, influence=weight) for one, weight in zip(found.latents, weights, strict=True))
        found = replace(found, question=question, answer=answer, latents=held)
    return found


def nearest(pipe: Pipeline, z: F32) -> tuple[Latent, ...]:
    """Tokens of the LLM by the cosine of their embeddings to the adapter's rows for latents f32 [m,d_z]."""
    rows = _unit(pipe.engine.adapt(z[None])[0, : len(z)])
    best = np.full((len(z), NEAR), -np.inf, np.float32)
    ids = np.zeros((len(z), NEAR), np.int64)
    vocab = pipe.bundle.manifest.llm.vocab_size
    for start in range(0, vocab, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, vocab))
        cosine = np.concatenate([best, rows @ _unit(embeddings(pipe.engine, numbers[None])[0]).T], axis=1)
        known = np.concatenate([ids, np.broadcast_to(numbers, (len(z), len(numbers)))], axis=1)
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAR]
        best, ids = np.take_along_axis(cosine, order, 1), np.take_along_axis(known, order, 1)
    return tuple(
        Latent(
            k,
            tuple(
                Near(pipe.tokenizer.decode([int(i)]), round(float(c), 4)) for i, c in zip(ids[k], best[k], strict=True)
            ),
        )
        for k in range(len(z))
    )


def placed(pipe: Pipeline, latents: Sequence[Latent], text: str, chunks: int) -> tuple[Latent, ...]:
    """The latents with the characters that each stands for: contiguous runs of the encoder's tokens."""
    starts = [*pipe.encoder_tokenizer.starts(text), len(text)]
    tokens, count = len(starts) - 1, len(latents)
    if chunks > 1 or tokens < count:  # each chunk has spans of its own; a byte encoder counts in groups
        return tuple(latents)
    info = pipe.bundle.manifest.encoder
    span_type, _, places = info.span_type.partition("/")
    if info.span_type == "equal":
        first = [next(t for t in range(tokens) if t * count // tokens == k) for k in range(count)]
    elif info.kind == "bytes" or span_type != "salient":  # found inside the graph
        return tuple(latents)
    else:
        ids = list(pipe.encoder_tokenizer.encode(text))
        first = span_starts(token_rarity(pipe.bundle)[ids], count, int(places or 1))
    edges = [*(starts[t] for t in first), len(text)]
    return tuple(replace(one, start=edges[k], stop=edges[k + 1]) for k, one in enumerate(latents))


def words(pipe: Pipeline, asked: Request, text: str) -> tuple[Word, ...]:
    """Names, numbers and long words of the text, each asked for with the latents and without."""
    found = _blanks(text)
    encode = pipe.tokenizer.encode
    targets = [encode(" " + text[a:b]) for _, a, b in found]
    questions = []
    for (left, right), a, b in found:
        sentence = f"{text[left:a]}____{text[b:right]}".strip()
        questions.append(tuple(question_ids(encode, CLOZE_TEMPLATE.format(sentence=sentence))))
    given = [replace(asked, question=q) for q in questions]
    nothing = [Request(no_latents(), (), q) for q in questions]
    for request, target in zip(given, targets, strict=True):
        pipe.check(request, GenerateOptions(max_new_tokens=len(target)), "text")
    nats = [float(one.mean()) for one in surprise(pipe.engine, [*given, *nothing], [*targets, *targets])]
    half = len(found)
    return tuple(Word(a, b, round(nats[i], 4), round(nats[half + i], 4), False) for i, (_, a, b) in enumerate(found))


def influence(pipe: Pipeline, asked: Request, answer: str) -> list[float]:
    """Nats a token that the answer loses when one latent is replaced by the mean of the others."""
    target = pipe.tokenizer.encode(" " + answer.strip()) or list(pipe.bundle.manifest.llm.eos)
    z = asked.latents
    total, others = z.sum(axis=0), max(len(z) - 1, 1)
    changed = []
    for k in range(len(z)):
        other = z.copy()
        other[k] = (total - z[k]) / others
        changed.append(replace(asked, latents=other))
    nats = surprise(pipe.engine, [asked, *changed], [target] * (len(z) + 1))
    own = float(nats[0].mean())
    return [round(float(one.mean()) - own, 4) for one in nats[1:]]


def _blanks(text: str) -> list[tuple[tuple[int, int], int, int]]:
    """``(sentence, start, stop)`` of up to ``WORDS`` words, evenly from all over the text."""
    found = [
        (sentence.span(), sentence.start() + word.start(), sentence.start() + word.end())
        for sentence in _SENTENCE.finditer(text)
        if len(sentence.group()) <= _LONGEST
        for word in _WORD.finditer(sentence.group())
        if not _opens(sentence.group(), word)
    ]
    if len(found) <= WORDS:
        return found
    return [found[i * len(found) // WORDS] for i in range(WORDS)]


def _opens(sentence: str, word: re.Match[str]) -> bool:
    """A single capital word at the beginning is a name or not: nobody knows."""
    found = word.group()
    return not sentence[: word.start()].strip() and " " not in found and found[0].isupper()


def _marked(word: Word, text: str, verbatim: Sequence[str]) -> Word:
    own = text[word.start : word.stop]
    return replace(word, verbatim=any(own in string or string in own for string in verbatim))


def _unit(x: F32) -> F32:
    out: F32 = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
    return out
