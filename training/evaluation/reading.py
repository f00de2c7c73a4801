"""What can be read out of the latents: the text itself, word for word, and single blanks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ...core.prompt import join
from ..batch import CUE, task_range
from ..data import Item, cloze
from ..latents import Rule
from ..llm import LMWrapper
from ..model import LatentModel
from ..tree import Branch, build
from .kinds import Kind
from .prefixes import prefixes


@dataclass(frozen=True)
class Reading:
    """Teacher-forced reading of text crops, behind ``CUE`` tokens that are given.

    Attributes:
        accuracy: share of tokens that are the most likely ones.
        nll: nats a token, from the text's own latents.
        shuffled: the same from another text's.
        unconditional: the same from nothing.
        tokens: asked for, mean of a text.
        latents: mean of a text.
    """

    accuracy: float
    nll: float
    shuffled: float
    unconditional: float
    tokens: float
    latents: float

    @property
    def bits_per_latent(self) -> float:
        """``(NLL unconditional - NLL) tokens / (latents ln 2)``: what a latent says about its text."""
        return (self.unconditional - self.nll) * self.tokens / (self.latents * math.log(2))


@torch.no_grad()
def reading(model: LatentModel, llm: LMWrapper, texts: Sequence[str], rule: Rule, length: int = 64) -> Reading:
    """Ask for the beginnings of texts word for word.

    Args:
        model: in ``eval`` mode.
        llm: who reads.
        texts: at least two.
        rule: how many latents.
        length: LLM tokens of a crop; shorter texts are left out.
    """
    ids = [own[:length] for text in texts if len(own := llm.encode(text)) >= length]
    items = [Item(llm.tokenizer.decode(own), ()) for own in ids]
    nll: dict[str, float] = {}
    accuracy = latents = 0.0
    for base in ("latents", "shuffled", "none"):
        kind = Kind(base, rule)
        found = prefixes(model, llm, items, kind)
        rows = task_range("reconstruct", found.capacity, model.config.task_tokens)
        branches = [[Branch(join([rows, own[:CUE]]), tuple(own[CUE:]), "reconstruct")] for own in ids]
        starts = [join([llm.special.bos, found.given.front, context.segment]) for context in found.contexts]
        scored = model.score(llm, build(starts, branches).to(llm.model.device), found.given)
        nll[base] = float(F.cross_entropy(scored.logits, scored.labels))
        if base == "latents":
            accuracy = float((scored.logits.argmax(-1) == scored.labels).double().mean())
            latents = float(np.mean([len(context.segment) for context in found.contexts]))
    return Reading(accuracy, nll["latents"], nll["shuffled"], nll["none"], length - CUE, latents)


def blanks(items: Sequence[Item], most: int = 2, seed: int = 0) -> list[Item]:
    """Cloze questions about the same contexts; contexts without a sentence to blank are left out."""
    out = []
    for number, item in enumerate(items):
        questions = cloze(item.context, np.random.default_rng([seed, number]), most)
        if questions:
            out.append(Item(item.context, tuple(questions)))
    return out
