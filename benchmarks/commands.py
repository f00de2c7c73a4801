"""What ``latentwire bench`` does, once its options are read.

In: an ``Asked``. Out: reports on stdout and in files. The benchmarks themselves know no command line.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.console import message, print_json, print_table
from ..core.errors import EXIT_MISMATCH, EXIT_OK, EXIT_ROW_ERRORS, EnvironmentFault
from ..core.files import atomic_write_json
from ..core.processors import usable_processors
from ..engines.bundle import read_bundle
from . import counts, machine, peer_setup
from .compress import compress
from .ensemble import Together, ensemble
from .inputs import load_inputs
from .latency import latency
from .launches import own_launches, peer_launches
from .plan import Plan
from .quality import quality
from .report import Report, write
from .roofline import roofline
from .scaling import scaling
from .serving import Load, load
from .throughput import throughput

KINDS: Final[Mapping[str, Callable[[Plan], Report]]] = {
    "throughput": throughput,
    "latency": latency,
    "compress": compress,
    "scaling": scaling,
    "quality": quality,
}


@dataclass(frozen=True)
class Asked:
    """Options as they were given; empty means the default.

    Attributes:
        bundles: folders; none: the shipped checkpoint on ``llm``, exported once.
        peers: names; none: all; ``none``: no peer.
        sizes: fields of ``Plan`` that were named.
        out: folder for ``<machine>-<date>.*``; None: nothing is written.
    """

    bundles: Sequence[Path] = ()
    llm: str = "smollm2-135m"
    peers: Sequence[str] = ()
    data: Path | None = None
    threads: int | None = None
    device: str = "cpu"
    engine: str = "auto"
    quick: bool = False
    out: Path | None = None
    as_json: bool = False
    sizes: Mapping[str, Any] = field(default_factory=dict)


def run(kinds: Sequence[str], asked: Asked) -> int:
    """Run the named benchmarks one after the other and report.

    Raises:
        EnvironmentFault: 5020 our own runtime failed; a failed peer is a row of the table.
        BundleError, InputError: before anything is started.
    """
    plan = planned(asked)
    if warning := machine.busy():
        message(warning)
    reports = []
    name = f"{machine.slug()}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}{'-quick' if plan.quick else ''}"
    for kind in kinds:
        message(f"bench {kind}")
        report = KINDS[kind](plan)
        refuse_own_failure(report, plan)
        if kind == "throughput":
            _add_roofline(report, plan)
        report.show(asked.as_json)
        reports.append(report)
        if asked.out:
            # After each one: what was measured is not lost if the next is stopped.
            paths = write(reports, asked.out / name)
            message("wrote " + ", ".join(map(str, paths)))
    return EXIT_OK


def planned(asked: Asked) -> Plan:
    """The plan of a command line; bundles are checked, nothing is started."""
    # The fast form first: its row is the one that is compared; the exact form shows what it costs.
    bundles = list(asked.bundles) or [_default_bundle(asked.llm, form) for form in ("int8", "fp32")]
    threads = asked.threads or usable_processors()
    llm = read_bundle(bundles[0], verify="size").manifest.llm.name
    names = [] if "none" in asked.peers else list(asked.peers or peer_setup.PEERS)
    launches = [*own_launches(bundles, threads, asked.device, asked.engine), *peer_launches(names, llm, threads)]
    plan = Plan(launches, load_inputs(asked.data))
    plan = plan.hurried() if asked.quick else plan
    return Plan(**{**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, **asked.sizes})


def set_up_peers(names: Sequence[str], llm: str, again: bool) -> int:
    """Make the environments of peers; says for each whether it can take part. A peer that cannot is no error."""
    rows = []
    for name in names or list(peer_setup.PEERS):
        reason = peer_setup.setup(name, llm, again)
        rows.append([name, "ready" if reason is None else "cannot take part", reason or str(peer_setup.folder(name))])
    print_table(["peer", "state", "where or why"], rows)
    return EXIT_OK


def count(bundle: Path | None, renew: Path | None, as_json: bool) -> int:
    """Count, then compare with the stored counts or store them. Returns 0, or 5 where something differs."""
    found = counts.measure(bundle or _default_bundle("smollm2-135m", "fp32"))
    if renew:
        atomic_write_json(renew, found)
        message(f"wrote {renew}")
        return EXIT_OK
    if as_json:
        print_json(found)
    changed = counts.differences(found, counts.stored())
    for line in changed:
        message(line)
    return EXIT_MISMATCH if changed else EXIT_OK


def serve_load(what: Load, data: Path | None, as_json: bool) -> int:
    """Load a running server and print a row for each number of clients. Returns 0, or 3 where requests were lost."""
    rows = load(what, load_inputs(data))
    if as_json:
        print_json({"kind": "serve", "rows": rows, "machine": machine.machine(), "load": machine.load()})
    else:
        columns = ["clients", "answered", "a minute", "first token ms p50/p95/p99", "answer ms p50/p95/p99"]
        shown = [[r["clients"], r["answered"], round(r["a_minute"]), *map(_percentiles, _times(r))] for r in rows]
        ends = [[json.dumps(r["refused"]), r["lost"], r["differing"]] for r in rows]
        table = [[*start, *end] for start, end in zip(shown, ends, strict=True)]
        print_table([*columns, "refused", "lost", "differing"], table)
    return EXIT_ROW_ERRORS if any(row["lost"] for row in rows) else EXIT_OK


def ask_together(what: Together, out: Path | None, as_json: bool) -> int:
    """Measure several LLMs as one; ``out``: stem of ``.md`` and ``.json``."""
    if warning := machine.busy():
        message(warning)
    report = ensemble(what)
    report.show(as_json)
    if out:
        message("wrote " + ", ".join(map(str, write([report], out, pictures=False))))
    return EXIT_OK


def _times(row: dict[str, Any]) -> list[dict[str, float | None]]:
    return [row["first_token_ms"], row["answer_ms"]]


def _percentiles(found: dict[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.0f}" for value in found.values())


def _default_bundle(llm: str, precision: str) -> Path:
    from ..runtime.demo import ready_bundle

    return ready_bundle(llm, precision)


def refuse_own_failure(report: Report, plan: Plan) -> None:
    """A report without our own figures is a failure of the command, not a short table."""
    failed = {**report.data.get("not_run", {})}
    own = {name: why for name, why in failed.items() if name.startswith(plan.own.name)}
    if own:
        name, why = next(iter(own.items()))
        raise EnvironmentFault(5020, "a benchmark of our own runtime failed", where=name, expected=why)


def _add_roofline(report: Report, plan: Plan) -> None:
    facts = report.facts["engines"][plan.own.name]
    if facts["engine"] == "toy":  # it has no weight files
        return
    rows = [r for r in report.data["rows"] if r["contender"] == plan.own.name and r["prompt_tokens"]["real"]]
    points = {r["workload"]: r["prompt_tokens"]["real"] for r in rows if r["workload"] != "W3"}
    found = roofline(Path(plan.own.options["bundle"]), facts["shape"], points, plan.new_tokens)
    report.data["roofline"] = found
    told = ", ".join(
        f"{name} at most {f['ceiling']['32']:,.0f}/min at batch 32 ({f['gflop_per_sample']:.1f} GFLOP a sample)"
        for name, f in found["workloads"].items()
    )
    limits = f"{found['gflops']:.0f} GFLOP/s float32 and {found['gb_per_s']:.0f} GB/s measured with numpy"
    report.remarks.append(f"Roofline: {limits}; {told}.")
