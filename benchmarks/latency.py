"""How long one request takes: the first token, the whole answer, and the first answer of a cold process.

In: a plan. Out: a report. Requests run one at a time; percentiles are of single requests.
"""

from __future__ import annotations

import time
from typing import Any

from ..core.console import track
from .children import Child, ChildFault
from .figures import spread
from .launches import Launch
from .plan import Plan
from .report import Report, Table, closed
from .rounds import alternate
from .session import Contender, Session, peer_prompts

WORKLOADS = ("W1", "W1-text", "W3")


def latency(plan: Plan) -> Report:
    """Measure it; what fails is a row."""
    facts, remarks = plan.facts(), plan.remarks()
    a_round = max(1, plan.requests // plan.rounds)
    with Session(plan.launches, plan.latents, plan.codec) as session:
        session.prepare(plan.inputs.take(a_round))
        facts["engines"] = session.facts
        everyone = session.contenders(WORKLOADS)
        with track("latency", 2 * len(everyone) * (plan.rounds + 1), "runs") as bar:
            sizes = {new: _timed(session, everyone, a_round, plan, new, bar.advance) for new in (1, plan.new_tokens)}
        prepared = session.prepared.get(plan.own.name)
        prompts = peer_prompts(prepared, plan.latents or session.facts[plan.own.name]["latents"]) if prepared else {}
        failed = session.failed
    cold = {launch.name: cold_start(launch, plan, prompts) for launch in plan.launches if not launch.reason}
    rows = [
        {
            "contender": who.launch.name,
            "workload": who.workload,
            "first_token_ms": sizes[1][who].latency_ms(),
            "answer_ms": whole.latency_ms(),
            "requests": len(whole.call_s),
            "raw": {"first_token_s": sizes[1][who].call_s, "answer_s": whole.call_s},
        }
        for who, whole in sizes[plan.new_tokens].items()
        if who in sizes[1]
    ]
    data = {"rows": rows, "cold": cold, "not_run": failed}
    closed(facts, remarks)
    return Report("latency", _tables(data, plan), data, facts, remarks)


def _timed(
    session: Session, everyone: list[Contender], count: int, plan: Plan, new_tokens: int, done: Any
) -> dict[Contender, Any]:
    return alternate(session, everyone, lambda who: (count, 1), plan.rounds, new_tokens, done, one_by_one=True)


def cold_start(launch: Launch, plan: Plan, prompts: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Seconds from starting a process to its first answer, ``plan.starts`` times. Our own checks sizes, not hashes."""
    workload = "W1" if launch.own else "W1-text"
    seconds: list[float] = []
    try:
        for _ in range(plan.starts):
            with Child(launch.name, launch.command, launch.cwd) as child:
                child.ask("open", **launch.options)
                if launch.own:
                    given = [{"text": s.text, "question": s.question} for s in plan.inputs.take(1)]
                    child.ask("prepare", samples=given, latents=plan.latents, codec=plan.codec)
                else:
                    child.ask("prepare", prompts={workload: prompts[workload][:1]})
                child.ask("run", workload=workload, first=0, count=1, batch=1, new_tokens=plan.new_tokens)
                seconds.append(time.perf_counter() - child.started)
    except (ChildFault, KeyError) as e:
        return {"failed": str(e)}
    how = "start, open, compress one text, answer from its frame" if launch.own else "start, open, answer one prompt"
    return {"seconds": spread(seconds), "raw": seconds, "includes": how}


def _tables(data: dict[str, Any], plan: Plan) -> list[Table]:
    columns = ["contender", "workload", "first token p50 ms", "p95", f"{plan.new_tokens} tokens p50 ms", "p95", "p99"]
    requests = Table("one request at a time", columns)
    for r in data["rows"]:
        first, whole = r["first_token_ms"], r["answer_ms"]
        cells = [first["p50"], first["p95"], whole["p50"], whole["p95"], whole["p99"]]
        requests.rows.append([r["contender"], r["workload"], *["-" if c is None else f"{c:.0f}" for c in cells]])
    requests.rows += [[name, "not run", why[:160], "", "", "", ""] for name, why in data["not_run"].items()]
    cold = Table("first answer of a cold process", ["contender", "median s", "least", "most", "includes"])
    for name, found in data["cold"].items():
        if "failed" in found:
            cold.rows.append([name, "-", "-", "-", found["failed"][:160]])
        else:
            s = found["seconds"]
            cold.rows.append([name, *[f"{s[k]:.2f}" for k in ("median", "min", "max")], found["includes"]])
    return [requests, cold]
