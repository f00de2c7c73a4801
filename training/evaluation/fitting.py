"""Two experiments that separate a broken path from a hard problem.

*Overfit*: a handful of texts must be memorised, to the letter. If not, gradients do not arrive.
*Cramming*: free vectors instead of an encoder (hidden_capacity, arXiv 2502.13063). What they reach is what the frozen
LLM can read; what the encoder lacks against them is the encoder's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ...core.console import track
from ...core.prompt import join
from ..data import Item
from ..evaluate import ask, measure
from ..llm import LMWrapper
from ..model import LatentModel
from ..tree import Branch, build
from .kinds import parse
from .prefixes import prefixes
from .protocol import Protocol

BOUND = 0.05
"""Nats a token below which a text counts as memorised."""


@dataclass(frozen=True)
class Fit:
    """What an experiment reached: nats a token, share of exact answers (tokens for cramming), steps it took."""

    nll: float
    exact: float
    steps: int


def overfit(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int, rate: float = 1e-3) -> Fit:
    """Train on one question of each text until it is memorised; the model's weights are put back afterwards.

    Args:
        model: trained from where it stands.
        llm: who answers.
        items: few texts; the first question of each.
        steps: at most so many, all texts in each.
        rate: Adam's learning rate, warmed up over ten steps.
    """
    own = [Item(item.context, item.questions[:1]) for item in items]
    kind, protocol = parse("latents"), Protocol()
    with _put_back(model), torch.enable_grad():
        modules = (model.encoder, model.adapter(llm), *model.features_of(llm).values())
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=rate, betas=(0.9, 0.95))
        done, loss = 0, torch.tensor(float("inf"))
        with track("overfit", total=steps, unit="step") as progress:
            while done < steps and float(loss.detach()) >= BOUND / 2:
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (done + 1) / 10)
                found = prefixes(model, llm, own, kind)
                scored = model.score(llm, ask(llm, found, kind, protocol, model.config.task_tokens), found.given)
                loss = F.cross_entropy(scored.logits, scored.labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                done += 1
                progress.advance()
        longest = max(len(protocol.target(llm, i.questions[0].answers[0])) for i in own)
        answers = measure(model, llm, own, "latents", max_new_tokens=longest)
        golds = [i.questions[0].answers[0].strip() for i in own]
        exact = [text == gold for text, gold in zip(answers.texts, golds, strict=True)]
    return Fit(float(answers.nll.mean()), sum(exact) / len(exact), done)


@contextmanager
def _put_back(model: LatentModel) -> Iterator[None]:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
                parameter.grad = None


def cram(
    llm: LMWrapper, texts: Sequence[str], steps: int, *, vectors: int = 32, length: int = 128, rate: float = 0.1
) -> Fit:
    """Fit ``vectors`` free rows a text so that the frozen LLM says the text behind them.

    Args:
        llm: frozen.
        texts: few; their first ``length`` tokens count.
        steps: at most so many.
        vectors: rows in front of each text.
        length: LLM tokens of a text.
        rate: Adam's learning rate, in units of the embeddings' RMS.
    """
    table = llm.embedding
    rms = float(table.square().mean().sqrt())
    ids = [llm.encode(text)[:length] for text in texts]
    # The last vector opens the branch: a target's first token is predicted where the branch begins.
    starts = [join([llm.special.bos, range(vectors - 1)]) for _ in ids]
    last = join([range(vectors - 1, vectors)])
    tree = build(starts, [[Branch(last, tuple(own), "reconstruct")] for own in ids]).to(table.device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(ids), vectors, table.shape[1], generator=generator)
    free = nn.Parameter(noise.to(table.device))
    optimizer = torch.optim.Adam([free], lr=rate, betas=(0.9, 0.95))
    done, nll, exact = 0, float("inf"), 0.0
    with torch.enable_grad(), track("cram", total=steps, unit="step") as progress:
        while done < steps and exact < 1.0:
            embeds = llm.splice(tree.ids, tree.row_index, free * rms)
            hidden = llm.hidden(embeds, tree.mask(), tree.positions)
            wanted = tree.labels >= 0
            logits, labels = llm.logits(hidden[wanted]), tree.labels[wanted]
            loss = F.cross_entropy(logits, labels)
            nll, exact = float(loss.detach()), float((logits.argmax(-1) == labels).double().mean())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            progress.advance()
    return Fit(nll, exact, done)
