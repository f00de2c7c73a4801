"""Samples a minute of every workload and contender: which batch suits whom, then rounds that alternate.

In: a plan. Out: a report with ratios to our own W1, and the greedy tokens of peers compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..core.console import track
from .agreement import agreement
from .children import Child, ChildFault
from .plan import Plan
from .report import Report, Table, closed, share, spreads, times, whole
from .rounds import Timing, alternate, times_faster
from .session import Contender, Session

WORKLOADS = ("W1", "W1-text", "W1-same", "W3", "W2")
ROUND_S: Final = 12
"""Seconds of work in a round that suffice for a rate: a slow contender answers fewer samples than a fast one."""

TRY_S: Final = 20
"""Seconds that one batch may take for its size to be tried."""

ALONE: Final = "W3"
"""Workload whose memory is measured in a process of its own: text to answer, all parts."""


def throughput(plan: Plan) -> Report:
    """Measure it. Raises ChildFault never: what fails is a row."""
    facts, remarks = plan.facts(), plan.remarks()
    with Session(plan.launches, plan.latents, plan.codec) as session:
        session.prepare(plan.inputs.take(plan.samples))
        facts["engines"] = session.facts
        everyone = session.contenders(WORKLOADS)
        runs = len(everyone) * (len(plan.batches) + 1 + plan.rounds)
        with track("throughput", runs, "runs") as bar:
            sweep = try_batches(session, everyone, plan, bar.advance)
            best = {who: max(tried, key=lambda b: rate(tried[b])) for who, tried in sweep.items() if tried}
            steady = [who for who in everyone if who in best]

            def sizes(who: Contender) -> tuple[int, int]:
                return round_samples(rate(sweep[who][best[who]]), best[who], plan.samples), best[who]

            found = alternate(session, steady, sizes, plan.rounds, plan.new_tokens, bar.advance, True)
            stopping = [Contender(plan.own, w) for w in ("W1", "W1-text") if Contender(plan.own, w) in found]
            natural = alternate(
                session,
                stopping,
                lambda who: (plan.samples, best[who]),
                max(1, plan.rounds // 2),
                plan.new_tokens,
                warm=True,
                until_stop=True,
            )
        agreed = agreement(session, plan)
        memory = peak_memory(session)
    # The processes above have done everything, texts as prompts included; memory of one workload is another figure.
    alone = {who.launch.name: memory_alone(who, plan, best[who]) for who in steady if who.workload == ALONE}
    data = {
        "rows": [row(who, timing, found, plan, session, memory) for who, timing in found.items()],
        "stops_by_itself": [row(who, timing, natural, plan, session, memory) for who, timing in natural.items()],
        "batches": {
            who.name: {str(batch): timing.figures() for batch, timing in tried.items()} for who, tried in sweep.items()
        },
        "agreement": agreed,
        "memory_alone": alone,
        "not_run": session.failed,
    }
    closed(facts, remarks)
    remarks += [
        "Every sample has exactly the tokens named; ~ marks rounds that differ by more than 5 %.",
        f"A batch without a rate was not tried: it would have taken over {TRY_S} s, or failed.",
    ]
    return Report("throughput", tables(data, plan), data, facts, remarks)


def try_batches(
    session: Session, everyone: list[Contender], plan: Plan, done: Any
) -> dict[Contender, dict[int, Timing]]:
    """One round at every batch size.

    Not tried is a batch larger than the samples of a round, or one that takes over TRY_S at the rate of a smaller one.
    """
    sizes = [b for b in plan.batches if b <= plan.samples] or [min(plan.batches)]
    tried: dict[Contender, dict[int, Timing]] = {who: {} for who in everyone}
    for batch in sizes:

        def sizes_of(who: Contender, batch: int = batch) -> tuple[int, int]:
            return max(batch, plan.samples // 4), batch

        fast = [who for who in everyone if all(60 * batch / rate(t) <= TRY_S for t in tried[who].values())]
        done(len(everyone) - len(fast))
        for who, timing in alternate(session, fast, sizes_of, 1, plan.new_tokens, done, batch != sizes[0]).items():
            tried[who][batch] = timing
    return tried


def rate(timing: Timing) -> float:
    """Samples a minute, best round."""
    return 60 * timing.count / min(timing.wall_s)


def round_samples(per_minute: float, batch: int, most: int) -> int:
    """Samples of a timed round: ``most``, or for a slow contender as many whole batches as ROUND_S allows."""
    batches = int(per_minute * ROUND_S / 60) // batch
    return min(most, max(1, batches) * batch)


def peak_memory(session: Session) -> dict[str, int]:
    """Most memory each process held since it started, bytes."""
    found = {launch.name: session.ask(launch, "stats") for launch in session.launches}
    return {name: reply["peak_rss_bytes"] for name, reply in found.items() if reply}


def memory_alone(who: Contender, plan: Plan, batch: int) -> dict[str, Any]:
    """Most memory of a new process of our own that does one round of one workload and nothing else."""
    launch = who.launch
    given = [{"text": s.text, "question": s.question} for s in plan.inputs.take(plan.samples)]
    try:
        with Child(launch.name, launch.command, launch.cwd) as child:
            child.ask("open", **launch.options)
            child.ask("prepare", samples=given, latents=plan.latents, codec=plan.codec, compress=False)
            wanted = {"count": plan.samples, "batch": batch, "new_tokens": plan.new_tokens}
            child.ask("run", workload=who.workload, first=0, **wanted)
            return {"workload": who.workload, "batch": batch, "peak_rss_bytes": child.ask("stats")["peak_rss_bytes"]}
    except ChildFault as e:
        return {"workload": who.workload, "batch": batch, "failed": str(e)}


def row(
    who: Contender,
    timing: Timing,
    found: Mapping[Contender, Timing],
    plan: Plan,
    session: Session,
    memory: Mapping[str, int],
) -> dict[str, Any]:
    """All that is known about one contender."""
    base = found.get(Contender(plan.own, "W1"))
    facts = session.facts[who.launch.name]
    return {
        "contender": who.launch.name,
        "workload": who.workload,
        "engine": facts.get("engine", facts.get("how")),
        "model": facts.get("model"),
        "weights": facts["weights"],
        "compute": facts["compute"],
        **timing.figures(),
        "w1_is_faster": times_faster(base, timing) if base and base is not timing else None,
        "peak_rss_bytes": memory.get(who.launch.name),
        "frame_bytes": _frame_bytes(session, who),
        "open_s": facts["open_s"],
    }


def _frame_bytes(session: Session, who: Contender) -> float | None:
    sizes = session.prepared.get(who.launch.name, {}).get("frame_bytes", [])
    return sum(sizes) / len(sizes) if sizes and who.workload in ("W1", "W2", "W3") else None


def tables(data: Mapping[str, Any], plan: Plan) -> list[Table]:
    """Samples a minute with peers, the batch sizes tried, whether tokens agree, and memory of one workload."""
    columns = ["contender", "workload", "weights", "compute", "batch", "samples/min", "samples/CPU-min"]
    columns += ["prompt real / padded", "peak MB", "W1 is faster, wall", "by CPU time"]
    main = Table(
        f"up to {plan.samples} samples a round, {plan.new_tokens} new tokens, {plan.rounds} alternating rounds", columns
    )
    main.rows += [_cells(r) for r in data["rows"]]
    main.rows += [[*_cells(r)[:1], f"{r['workload']}, may stop", *_cells(r)[2:]] for r in data["stops_by_itself"]]
    main.rows += [
        [name, "not run", reason[:160], *[""] * (len(columns) - 3)] for name, reason in data["not_run"].items()
    ]
    batches = Table("samples a minute by batch size, one round each", ["contender", *map(str, plan.batches)])
    for name, tried in data["batches"].items():
        cells = [tried.get(str(b), {}).get("samples_per_min", {}).get("median") for b in plan.batches]
        batches.rows.append([name, *map(whole, cells)])
    same = Table(
        "greedy tokens of the same prompts, up to the first end token, against the yardstick",
        ["contender", "prompts", "same", "yardstick"],
    )
    same.rows += [[name, a["prompts"], a["same"], a["yardstick"]] for name, a in data["agreement"].items()]
    memory = Table("memory of a new process that does nothing else", ["contender", "workload", "batch", "peak MB"])
    for name, a in data["memory_alone"].items():
        peak = whole(a["peak_rss_bytes"] / 1e6) if "peak_rss_bytes" in a else a["failed"][:160]
        memory.rows.append([name, a["workload"], a["batch"], peak])
    return [main, batches, same, memory]


def _cells(found: Mapping[str, Any]) -> list[Any]:
    tokens, faster = found["prompt_tokens"], found["w1_is_faster"] or {}
    memory = found["peak_rss_bytes"]
    return [
        found["contender"],
        found["workload"],
        found["weights"],
        found["compute"],
        found["batch"],
        spreads(found["samples_per_min"]),
        whole(found["samples_per_cpu_min"]["median"]),
        f"{whole(tokens['real'])} / {whole(tokens['padded'])} ({share(tokens['padded_share'])})",
        whole(None if memory is None else memory / 1e6),
        times(faster.get("wall_s")),
        times(faster.get("cpu_s")),
    ]
