"""What a precision costs: a bundle against its float32 form, on real sentences and real questions.

    sentences, each token given     -> nats a token of both forms, and how often both would choose the same token
    questions on contexts           -> F1 of both forms, from latents and from the full text; equal answers
    their contexts                  -> cosine of each latent of one form with that of the other

In: two bundles that differ in precision only. Out: figures for the manifest, each with a 95 % bootstrap
interval over sentences or questions. Differences are paired: other minus float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.console import track
from ..core.errors import InputError
from ..core.scoring import best_f1, interval
from ..engines.base import F32, Engine
from ..engines.bundle import Bundle
from .answers import KINDS, Question, answers, latents_of
from .backends import running
from .drive import Prompts, allocated, embed, feed, lengths_of
from .reference import sentence_prompts

SENTENCES: Final = 32
BATCH: Final = 16
NEW_TOKENS: Final = 16
DEMO: Final = Path(__file__).resolve().parent.parent / "runtime" / "demo_documents"

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Sentences read by one engine, token by token.

    Attributes:
        nll: float64 [N], mean nats a token of each sentence.
        choices: for each sentence int64 [T-1], the token it would have chosen at each position.
    """

    nll: F64
    choices: list[npt.NDArray[np.int64]]


def measure_loss(
    bundle: Bundle, plain: Bundle, questions: Sequence[Question], *, threads: int | None = None
) -> dict[str, Any]:
    """Measure both bundles on the same prompts, one after the other.

    Args:
        bundle: the form in question.
        plain: the same export in float32.
        questions: with contexts and gold answers.
        threads: computing threads; None: all.

    Returns:
        for the manifest's ``quality["precision"]``: what was measured, on what, and on which engine.

    Raises:
        InputError: 2104 no questions.
        BundleError: 4011 no backend of this machine runs one of the two.
    """
    if not questions:
        raise InputError(2104, "no questions to measure with", where="option measure")
    scored, said, engine, latents = _measure(bundle, questions, threads)
    plain_scored, plain_said, plain_engine, plain_latents = _measure(plain, questions, threads)
    cosine = cosines(latents, plain_latents)
    same = [float(np.mean(a == b)) for a, b in zip(scored.choices, plain_scored.choices, strict=True)]
    return {
        "engine": engine,
        "against": f"{plain.manifest.precision} on {plain_engine}",
        "sentences": {
            "count": len(same),
            "tokens": sum(len(c) for c in scored.choices),
            "nll": _figure(scored.nll),
            "nll_fp32": _figure(plain_scored.nll),
            "nll_rise": _figure(scored.nll - plain_scored.nll),
            "same_choice": _figure(np.array(same)),
        },
        "latents": {"count": len(cosine), "cosine": _figure(cosine), "least": round(float(cosine.min()), 4)},
        "questions": {
            "count": len(questions),
            **{kind: _compared(questions, said[kind], plain_said[kind]) for kind in KINDS},
        },
    }


def _measure(
    bundle: Bundle, questions: Sequence[Question], threads: int | None
) -> tuple[Scored, dict[str, list[str]], str, F32]:
    """Sentences scored, answers by kind of prefix, name of the engine, latents of distinct contexts [N,M,d_z]."""
    there, _ = running(bundle, threads)
    with closing(there[0].open()) as engine:
        prompts = sentence_prompts(bundle.file("tokenizer.json"), bundle.manifest.llm.bos, SENTENCES)
        with track(f"loss: {bundle.manifest.precision}", len(prompts) + len(KINDS) * len(questions), "prompts") as bar:
            scored = score(engine, prompts, bar.advance)
            said = {kind: answers(engine, questions, kind, NEW_TOKENS, bar.advance) for kind in KINDS}
        distinct = sorted({q.context for q in questions}, key=len)
        parts = [latents_of(engine, distinct[at : at + BATCH]) for at in range(0, len(distinct), BATCH)]
        return scored, said, engine.name, np.concatenate(parts)


def cosines(a: F32, b: F32) -> F64:
    """Of latents [N,M,d_z] that both forms filled, one figure each, in float64."""
    both = a.any(axis=2) & b.any(axis=2)
    left, right = a[both].astype(np.float64), b[both].astype(np.float64)
    found: F64 = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return found


def score(engine: Engine, prompts: Prompts, done: Callable[[float], None] = lambda count: None) -> Scored:
    """Read prompts [BOS, tokens] one token at a time: the logits after each one score the next."""
    nll: list[float] = []
    choices: list[npt.NDArray[np.int64]] = []
    ordered = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(ordered), BATCH):
        batch = [prompts[i] for i in ordered[start : start + BATCH]]
        losses, chosen = _read(engine, batch)
        nll += [float(losses[b, : len(p) - 1].mean()) for b, p in enumerate(batch)]
        choices += [chosen[b, : len(p) - 1] for b, p in enumerate(batch)]
        done(len(batch))
    return Scored(np.array(nll), choices)


def _read(engine: Engine, prompts: Prompts) -> tuple[F64, npt.NDArray[np.int64]]:
    """Nats of each given token and the token preferred to it: float64 and int64 [B,T-1], rests meaningless."""
    lengths = lengths_of(prompts)
    longest = int(lengths.max())
    padded = np.array([[*p, *[p[-1]] * (longest - len(p))] for p in prompts], np.int64)
    buffers = allocated(engine, prompts, 0)
    engine.prefill(buffers, embed(engine, [p[:1] for p in prompts]), np.ones(len(prompts), np.int64))
    losses, chosen = [], []
    for step in range(1, longest):
        logits = np.array(buffers.logits, np.float64)
        largest = logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        losses.append(total - logits[np.arange(len(prompts)), padded[:, step]])
        chosen.append(logits.argmax(axis=1))
        if step + 1 < longest:
            feed(engine, buffers, padded[:, step].tolist())
    return np.stack(losses, axis=1), np.stack(chosen, axis=1)


def _compared(questions: Sequence[Question], ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    own, plain = (
        np.array([best_f1(text, q.answers) for text, q in zip(said, questions, strict=True)]) for said in (ours, theirs)
    )
    same = np.array([float(a == b) for a, b in zip(ours, theirs, strict=True)])
    return {
        "f1": _figure(own),
        "f1_fp32": _figure(plain),
        "f1_difference": _figure(own - plain),
        "same_answer": _figure(same),
    }


def _figure(values: F64) -> dict[str, Any]:
    """Mean and 95 % interval."""
    low, high = interval(values)
    return {"mean": round(float(values.mean()), 4), "ci": [round(low, 4), round(high, 4)]}


def demo_questions() -> list[Question]:
    """The packaged demo's: questions on passages of free text, one answer each."""
    texts = demo_texts()
    return [Question(texts[q["custom_id"]], q["question"], (q["answer"],)) for q in _lines(DEMO / "questions.jsonl")]


def demo_texts() -> dict[str, str]:
    """The packaged demo's documents by name."""
    return {d["custom_id"]: d["text"] for d in _lines(DEMO / "documents.jsonl")}


def read_questions(path: str, count: int) -> list[Question]:
    """The first ``count`` of a JSONL(.gz) file with ``context``, ``question`` and ``answers``, spread over contexts.

    Raises:
        InputError: 2103, 2104, 2107 as ``training.data.read_questions``.
    """
    from ..training.data import read_questions as read

    items = read([path])
    found = [Question(i.context, q.text, q.answers) for i in items for q in i.questions]
    at = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    return [found[int(i)] for i in at]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
