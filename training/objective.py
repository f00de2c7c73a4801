"""One micro-batch -> its loss and each term of it, without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch import Batch
from .bundles import FOLLOW_TERM, KEEP_TERM, LATENT_TERMS, needs_teacher, weights
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .encoder_bytes import ByteLevelEncoder
from .injection import Injection
from .keeping import follow_loss, keep_loss
from .lesson import token_cut
from .llm import LMWrapper
from .loss import (
    AnswerWeights,
    TopLogits,
    cross_entropy,
    distillation,
    distillation_top,
    latent_losses,
    top_logits,
    weighted_mean,
)
from .model import LatentModel
from .stages import Stage
from .teacher_cache import TeacherCache
from .tree import KINDS, QUESTIONS, Tree

Terms = dict[str, Tensor]
"""Term -> scalar."""


@dataclass(frozen=True)
class Objective:
    """The loss of one bundle.

    Args:
        config: gives K, temperatures and token weights.
        terms: weight by term, see ``bundles.py``.
        llms: numbers of the LLMs that are asked, in the config's order.
        caches: by name of an LLM, what its teacher said before; empty: the teacher reads every text again.
    """

    config: Config
    terms: Mapping[str, float]
    llms: tuple[int, ...]
    caches: Mapping[str, TeacherCache] = field(default_factory=dict)

    @classmethod
    def named(cls, config: Config, bundle: str) -> Objective:
        """The objective of a bundle's name."""
        return cls(config, weights(bundle, config.kd_weight), tuple(range(len(config.llms))))

    @classmethod
    def of(cls, config: Config, stage: Stage, caches: Mapping[str, TeacherCache] | None = None) -> Objective:
        """The objective of a stage."""
        asked = tuple(config.llms.index(name) for name in stage.llms or config.llms)
        return cls(config, weights(stage.bundle or config.bundle, config.kd_weight), asked, caches or {})

    @property
    def needs_teacher(self) -> bool:
        """Whether batches must also come as full text."""
        return needs_teacher(self.terms)

    def __call__(self, model: LatentModel, batch: Batch, teachers: tuple[Tree, ...] = ()) -> tuple[Tensor, Terms]:
        """Mean loss over the LLMs, and ``LLM/term`` -> value (detached, on the device).

        Args:
            model: encoder, adapters and LLMs.
            batch: one tree for each LLM.
            teachers: the same branches behind the full text; needed where ``needs_teacher``.
        """
        total = torch.zeros((), device=batch.input_ids.device)
        logged: Terms = {}
        if batch.wanted is not None:
            assert isinstance(model.encoder, EncoderFromEmbedLayer)
            kept = keep_loss(model.encoder.odds(batch.input_ids, batch.lengths), batch.wanted)
            total, logged[KEEP_TERM] = total + self.terms[KEEP_TERM] * kept, kept.detach()
        if FOLLOW_TERM in self.terms:
            followed = follow_term(model, batch)
            total, logged[FOLLOW_TERM] = total + self.terms[FOLLOW_TERM] * followed, followed.detach()
        if not self.terms.keys() - {KEEP_TERM, FOLLOW_TERM}:
            return total, logged
        z = model.encode(batch.input_ids, batch.lengths, len(batch.slots), batch.counts)
        if self.terms.keys() & set(LATENT_TERMS):
            own = latent_terms(model, batch, z)
            total = sum((self.terms[name] * value for name, value in own.items() if name in self.terms), total)
            logged |= {name: value.detach() for name, value in own.items()}
        z = model.quantised(z, batch.rounded)
        # Where latents alone are learned there are no trees.
        for number in self.llms if batch.trees else ():
            llm, tree = model.llms[number], batch.trees[number]
            given = model.read(llm, z)
            found = self._terms(model, llm, tree, given, teachers[number] if self.needs_teacher else None)
            # Of texts too short to ask anything about there is no term, and no gradient.
            nothing = torch.zeros((), device=z.device) if found else 0.0 * given.rows.sum()
            loss = sum((self.terms[n] * v for n, v in found.items()), nothing)
            logged.update({f"{llm.name}/{name}": value.detach() for name, value in found.items()})
            total = total + loss / len(self.llms)
        return total, logged

    def _terms(self, model: LatentModel, llm: LMWrapper, tree: Tree, given: Injection, teacher: Tree | None) -> Terms:
        states = model.states(llm, tree, given).flatten(0, 1)
        logits = llm.logits(states[tree.scored])
        found = answer_terms(self.config, self.terms, logits, tree)
        if teacher is None:
            return found
        positions = {"kd": teacher.scored, "prefix_kd": teacher.asked}
        said = self._said(model, llm, teacher, {n: p for n, p in positions.items() if n in self.terms and len(p)})
        tau = self.config.kd_tau
        for name, words in said.items():
            student = logits if name == "kd" else llm.logits(states[tree.asked])
            if isinstance(words, Tensor):
                found[name] = distillation(student, words, tau)
            else:
                found[name] = distillation_top(student, words, tau)
        return found

    @torch.no_grad()
    def _said(
        self, model: LatentModel, llm: LMWrapper, teacher: Tree, positions: Mapping[str, Tensor]
    ) -> Mapping[str, TopLogits | Tensor]:
        """What the teacher says at each term's positions: as it was kept, or by reading the full text."""
        cache = self.caches.get(llm.name)
        known = cache.recall(teacher.keys, tuple(positions), teacher.ids.device) if cache else None
        if known is not None:
            return known
        read = model.states(llm, teacher, model.task_rows(llm, teacher.ids.shape[0])).flatten(0, 1)
        k = self.config.teacher_top
        if not k:
            return {name: llm.logits(read[at]) for name, at in positions.items()}
        said = {name: top_logits(llm.logits(read[at]), self.config.kd_tau, k) for name, at in positions.items()}
        if cache is not None:
            cache.keep(teacher.keys, said)
        return said


def latent_terms(model: LatentModel, batch: Batch, z: Tensor) -> Terms:
    """How far latents f32 [B,M,d_z] are from the teacher's for the same spans, over spans in which it has a token."""
    lesson = batch.lesson
    assert lesson is not None
    assert isinstance(model.encoder, ByteLevelEncoder)
    with torch.no_grad():
        own = model.encoder.cut(batch.input_ids, batch.lengths, batch.slots, batch.counts)
        cut = token_cut(own, lesson.starts, model.encoder.grain)
        goal = model.teacher(lesson.input_ids, lesson.lengths, batch.slots, cut=cut)
    cos, mse = latent_losses(z, goal, cut.spans.any(-1))
    return {"latent_cos": cos, "latent_mse": mse}


def follow_term(model: LatentModel, batch: Batch) -> Tensor:
    """How far the head of a byte encoder is from its teacher's, over the bytes of the texts."""
    lesson = batch.lesson
    assert lesson is not None
    assert isinstance(model.encoder, ByteLevelEncoder)
    with torch.no_grad():
        told = model.teacher.odds(lesson.input_ids, lesson.lengths)
    odds = model.encoder.odds(batch.input_ids, batch.lengths)
    place = torch.arange(odds.shape[1], device=odds.device)
    return follow_loss(odds, told, lesson.starts, place < batch.lengths[:, None])


def format_loss(config: Config, model: LatentModel, tree: Tree, llm: LMWrapper) -> Tensor:
    """Loss of the full-text prompt, which trains the task rows and nothing else."""
    scored = model.score(llm, tree, model.task_rows(llm, tree.ids.shape[0]))
    weight = AnswerWeights(config.k, config.k_token_weight, config.first_token_ce)
    return cross_entropy(scored.logits, scored.labels, weight(scored.rank))


def answer_terms(config: Config, wanted: Mapping[str, float], logits: Tensor, tree: Tree) -> Terms:
    """Cross-entropies of one tree, in ``wanted`` and with positions in the tree.

    Args:
        config: K and token weights.
        wanted: names of terms; others are left out.
        logits: f32 [N,V] at ``tree.scored``.
        tree: the labels.
    """
    labels, rank, task = (t.flatten()[tree.scored] for t in (tree.labels, tree.rank, tree.task))
    out: Terms = {}
    if not len(labels):
        return out
    if "ce" in wanted:
        weigh = AnswerWeights(config.k, config.k_token_weight, config.first_token_ce)
        out["ce"] = cross_entropy(logits, labels, weigh(rank))
    if not wanted.keys() - {"ce", "kd", "prefix_kd"}:
        return out
    nll = F.cross_entropy(logits, labels, reduction="none")
    # Masks instead of a selection: how many positions a selection has is known to the device only.
    for number, kind in enumerate(KINDS):
        if kind in wanted and tree.counts[number]:
            weight = (task == number).float()
            if kind == "answer":
                weight = weight * AnswerWeights(config.k, config.k_token_weight, 0.0)(rank)
            out[kind] = weighted_mean(nll, weight)
    asked = (task == QUESTIONS[0]) | (task == QUESTIONS[1])
    if any(tree.counts[number] for number in QUESTIONS):
        for name, first in (("k_token", config.k), ("first_token", 1)):
            if name in wanted:
                out[name] = weighted_mean(nll, (asked & (rank < first)).float())
    return out
