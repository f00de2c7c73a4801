"""What several LLMs are worth together: every rule of choosing against each LLM alone, on the same frames.

In: bundles of one encoder, held-out questions. Out: a report. One pass makes all proposals and all scores; every rule
then chooses among them. Differences are paired: both sides answer the same questions, and whole texts are resampled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..core.console import track
from ..core.errors import InputError
from ..core.scoring import best_f1, exact, grouped_interval
from ..runtime.choices import CodecName, Rule
from ..runtime.ensemble import F64, Chosen, Ensemble, choose
from ..runtime.options import CompressOptions, GenerateOptions
from ..runtime.pipeline import Pipeline, raised
from . import machine
from .inputs import Sample
from .questions import load_questions
from .report import Report, Table, closed

BATCH = 16
"""Questions that are handed over together, for the progress bar."""


@dataclass(frozen=True)
class Together:
    """What is compared.

    Attributes:
        bundles: at least two, of one encoder.
        data: held-out questions.
        questions: how many.
        new_tokens: longest answer.
        codec: of the frames.
        seed: of the choice of questions and of resampling.
        threads: computing threads; None: all.
    """

    bundles: Sequence[Path]
    data: Path
    questions: int = 200
    new_tokens: int = 16
    codec: CodecName = "i8"
    seed: int = 0
    threads: int | None = None


def ensemble(what: Together) -> Report:
    """Answer, let every rule choose, score.

    Raises:
        InputError: 2111 fewer than two bundles; from the data. BundleError: 4001-4009. ModelError: 3101 the bundles
            are not of one encoder.
    """
    if len(what.bundles) < 2:
        expected = f"expected at least 2 bundles, got {len(what.bundles)}"
        raise InputError(2111, "nothing to put together", where="option bundle", expected=expected)
    samples = load_questions(what.data, what.questions, what.seed)
    facts = {"machine": machine.machine(), **machine.run_facts(what.seed)}
    with ExitStack() as stack:
        pipes = [stack.enter_context(Pipeline.open(b, **_options(what))) for b in what.bundles]
        names = list(map(_name, pipes))
        facts["engines"] = {_name(p): {"engine": p.engine.name, "bundle": p.bundle.manifest.fingerprint} for p in pipes}
        frames = pipes[0].compress([s.text for s in samples], CompressOptions(what.codec, on_too_long="truncate"))
        found, seconds = _answers(pipes, frames, samples, what.new_tokens)
    data = {"questions": len(samples), "texts": len({s.text for s in samples}), "codec": what.codec, "seconds": seconds}
    data |= figures(names, found, samples, what.seed)
    took = f"Proposals and scores took {seconds:.0f} s for {len(samples)} questions, all LLMs together"
    remarks = [f"{took}; they agreed on {100 * data['agreed']:.0f} % of the questions."]
    closed(facts, remarks)
    return Report("ensemble", [_table(data)], data, facts, remarks)


def figures(names: Sequence[str], found: Sequence[Chosen], samples: Sequence[Sample], seed: int = 0) -> dict[str, Any]:
    """F1 and exact match of each LLM and of each rule, with 95 % intervals over texts.

    Args:
        names: of the LLMs.
        found: proposals and scores of every question.
        samples: the questions with their answers.
        seed: of the resamples.

    Returns:
        ``rows``: a row for each LLM alone, then one for each rule, with ``f1``, ``f1_ci``, ``em``, and for the rules
        ``minus_best`` and ``minus_best_ci`` against the LLM that has the best F1 alone; ``best``: its name;
        ``oracle``: F1 if always the better proposal were chosen; ``agreed``: share of questions with one proposal.
    """
    groups = np.unique([s.text for s in samples], return_inverse=True)[1]
    single = [[c.proposals[i][1] for c in found] for i in range(len(names))]
    chosen = {rule: [_by(rule, c) for c in found] for rule in get_args(Rule)}
    scores = [_f1(texts, samples) for texts in single]
    best = int(np.argmax([f.mean() for f in scores]))
    rows = []
    for name, texts in [*zip(names, single, strict=True), *chosen.items()]:
        f1 = _f1(texts, samples)
        em = float(np.mean([exact(t, s.answers) for t, s in zip(texts, samples, strict=True)]))
        row = {"answers": name, "f1": float(f1.mean()), "f1_ci": grouped_interval(f1, groups, seed), "em": em}
        if name in chosen:
            row["minus_best"] = float((f1 - scores[best]).mean())
            row["minus_best_ci"] = grouped_interval(f1 - scores[best], groups, seed)
        rows.append(row)
    return {
        "rows": rows,
        "best": names[best],
        "oracle": float(np.max(scores, axis=0).mean()),
        "agreed": float(np.mean([len({t for _, t in c.proposals}) == 1 for c in found])),
    }


def _options(what: Together) -> dict[str, Any]:
    return {"threads": what.threads, "verify": "size"}


def _name(pipe: Pipeline) -> str:
    return f"{pipe.bundle.manifest.llm.name} {pipe.bundle.manifest.precision}"


def _answers(
    pipes: Sequence[Pipeline], frames: Sequence[bytes], samples: Sequence[Sample], new_tokens: int
) -> tuple[list[Chosen], float]:
    together, options = Ensemble(pipes), GenerateOptions(max_new_tokens=new_tokens)
    found: list[Chosen] = []
    began = time.perf_counter()
    with track("ensemble", len(samples), "questions") as bar:
        for start in range(0, len(samples), BATCH):
            part = slice(start, start + BATCH)
            answers = raised(together.answers(frames[part], [s.question for s in samples[part]], options, bar.advance))
            found += [a for a in answers if isinstance(a, Chosen)]
    return found, time.perf_counter() - began


def _by(rule: Rule, found: Chosen) -> str:
    """What this rule chooses from the same proposals and scores."""
    texts = [text for _, text in found.proposals]
    distinct = list(dict.fromkeys(t for t in texts if t))
    return distinct[choose(rule, texts, distinct, np.array(found.scores, np.float64))] if distinct else ""


def _f1(texts: Sequence[str], samples: Sequence[Sample]) -> F64:
    return np.array([best_f1(t, s.answers) for t, s in zip(texts, samples, strict=True)], np.float64)


def _table(data: dict[str, Any]) -> Table:
    title = f"{data['questions']} questions about {data['texts']} texts, frames in {data['codec']}"
    table = Table(title, ["who answers", "F1", "95 %", "EM", f"F1 minus {data['best']}", "95 %"])
    for r in data["rows"]:
        low, high = r["f1_ci"]
        cells = [r["answers"], f"{r['f1']:.3f}", f"{low:.3f} to {high:.3f}", f"{r['em']:.3f}", "", ""]
        if "minus_best" in r:
            low, high = r["minus_best_ci"]
            cells[4:] = [f"{r['minus_best']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
        table.rows.append(cells)
    table.rows.append(["the better proposal, if one knew", f"{data['oracle']:.3f}", "", "", "", ""])
    return table
