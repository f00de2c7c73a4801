"""What the answers are worth, beside what they cost: F1, exact match, nats a token, greedy tokens against a bundle.

In: a plan; its first bundle is the yardstick of the others (fp32 first, then int8 and so on). Out: a report.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.console import track
from ..core.scoring import best_f1, exact, interval
from .agreement import compare, text_prompts
from .plan import Plan
from .report import Report, Table, closed, whole
from .rounds import alternate
from .session import Contender, Session


def quality(plan: Plan) -> Report:
    """Score every own bundle on the same questions, and time its W1 in the same run."""
    facts, remarks = plan.facts(), plan.remarks()
    own = [launch for launch in plan.launches if launch.own]
    samples = plan.inputs.take(plan.samples)
    golds = [s.answers[0] for s in samples]
    batch = min(max(plan.batches), plan.samples)
    rows: list[dict[str, Any]] = []
    with Session(own, plan.latents, plan.codec) as session, track("quality", len(own), "bundles") as bar:
        session.prepare(samples)
        facts["engines"] = session.facts
        everyone = session.contenders(["W1", "W1-text"])
        speed = alternate(session, everyone, lambda who: (plan.samples, batch), plan.rounds, plan.new_tokens)
        wanted = None
        for launch in own:
            found = session.ask(launch, "quality", golds=golds, new_tokens=plan.new_tokens, batch=batch)
            if found is None:
                bar.advance()
                continue
            prompts = text_prompts(session.prepared[launch.name])
            check = session.ask(launch, "check", prompts=prompts, new_tokens=plan.new_tokens, batch=batch)
            wanted = wanted or (check["tokens"] if check else None)
            same = compare(check, wanted, []) if check and wanted else None
            for kind, workload in (("latents", "W1"), ("full text", "W1-text")):
                who = Contender(launch, workload)
                timed = speed[who].figures() if who in speed else None
                scores = score(found["kinds"][kind]["answers"], [s.answers for s in samples])
                facts_of = {"contender": launch.name, "kind": kind, "greedy_match": same}
                rows.append({**facts_of, **scores, "nll": found["kinds"][kind]["nll"], "speed": timed})
            bar.advance()
        failed = dict(session.failed)
    data = {"rows": rows, "questions": len(samples), "not_run": failed}
    closed(facts, remarks)
    if len(samples) < 400:
        remarks.append(f"{len(samples)} questions: the intervals are wide; --data and --samples take more.")
    return Report("quality", _tables(data), data, facts, remarks)


def score(answers: list[str], golds: list[tuple[str, ...]]) -> dict[str, Any]:
    """F1 with its 95 % interval, and exact match; means over questions."""
    f1 = np.array([best_f1(a, g) for a, g in zip(answers, golds, strict=True)])
    em = float(np.mean([exact(a, g) for a, g in zip(answers, golds, strict=True)]))
    return {"f1": float(f1.mean()), "f1_interval": list(interval(f1)), "em": em}


def _tables(data: dict[str, Any]) -> list[Table]:
    columns = ["contender", "reads", "F1", "95 %", "EM", "nats/token", "same greedy tokens", "samples/min"]
    table = Table(f"{data['questions']} questions", columns)
    for r in data["rows"]:
        low, high = r["f1_interval"]
        same = r["greedy_match"]
        told = f"{same['same']} of {same['prompts']}" if same else "-"
        rate = whole(r["speed"]["samples_per_min"]["median"]) if r["speed"] else "-"
        cells = [f"{r['f1']:.3f}", f"{low:.3f} to {high:.3f}", f"{r['em']:.3f}", f"{r['nll']:.3f}"]
        table.rows.append([r["contender"], r["kind"], *cells, told, rate])
    table.rows += [[name, "not run", why[:160], *[""] * 5] for name, why in data["not_run"].items()]
    return [table]
