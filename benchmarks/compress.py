"""Texts to frames: samples a minute in three scopes, which are never mixed.

``model`` is the encoder graph on tokens that are there; ``+tokenise`` is text to frame in memory; ``job`` is the
command line from file to synced files on disk, its start included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from ..core.console import track
from .figures import spread
from .inputs import Sample
from .plan import Plan
from .report import Report, Table, closed, share, spreads, whole
from .rounds import Timing, alternate
from .session import Contender, Session

SCOPES: Final = {"W2-model": "model", "W2": "+tokenise"}


def compress(plan: Plan) -> Report:
    """Measure every own bundle at every batch size; peers do not compress."""
    facts, remarks = plan.facts(), plan.remarks()
    own = [launch for launch in plan.launches if launch.own]
    rows: list[dict[str, Any]] = []
    with Session(own, plan.latents, plan.codec) as session:
        session.prepare(plan.inputs.take(plan.samples))
        facts["engines"] = session.facts
        everyone = [Contender(launch, w) for w in SCOPES for launch in own if session.alive(launch)]
        with track("compress", len(plan.batches) * len(everyone) * (plan.rounds + 1), "runs") as bar:
            for batch in plan.batches:

                def sizes(who: Contender, batch: int = batch) -> tuple[int, int]:
                    return plan.samples, batch

                found = alternate(session, everyone, sizes, plan.rounds, plan.new_tokens, bar.advance)
                rows += [_row(who, timing, session) for who, timing in found.items()]
        failed = dict(session.failed)
    jobs = {launch.name: job(Path(launch.options["bundle"]), plan) for launch in own}
    data = {"rows": rows, "jobs": jobs, "not_run": failed}
    closed(facts, remarks)
    return Report("compress", _tables(data, plan), data, facts, remarks)


def job(bundle: Path, plan: Plan) -> dict[str, Any]:
    """``latentwire compress`` on a file of the same texts, ``plan.starts`` times, each in a process of its own."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="latentwire-bench-") as folder:
        texts = Path(folder) / "texts.jsonl"
        write_texts(texts, plan.inputs.take(plan.samples))
        for number in range(plan.starts):
            words = [str(texts), "-o", str(Path(folder) / f"out-{number}"), "--bundle", str(bundle), "--quiet"]
            words += ["--codec", plan.codec, "--on-too-long", "chunk"]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "latentwire.cli", "compress", *words], capture_output=True, check=False
            )
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                return {"failed": done.stderr.decode(errors="replace").strip().splitlines()[-1:][0][:300]}
    rates = [60 * plan.samples / s for s in seconds]
    return {"samples": plan.samples, "samples_per_min": spread(rates), "raw": {"wall_s": seconds}}


def write_texts(path: Path, samples: list[Sample]) -> None:
    """The texts as input of a job."""
    lines = [json.dumps({"custom_id": f"t{i}", "text": s.text}) for i, s in enumerate(samples)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(who: Contender, timing: Timing, session: Session) -> dict[str, Any]:
    counts = timing.last["counts"]
    sizes = session.prepared[who.launch.name]["frame_bytes"]
    return {
        "contender": who.launch.name,
        "scope": SCOPES[who.workload],
        **timing.figures(),
        "frame_bytes": sum(sizes) / len(sizes),
        "encoder_tokens": {
            "real": counts["encode_real"] / timing.count,
            "padded": counts["encode_padded"] / timing.count,
            "padded_share": 1 - counts["encode_real"] / counts["encode_padded"],
        },
    }


def _tables(data: dict[str, Any], plan: Plan) -> list[Table]:
    columns = ["contender", "scope", "batch", "samples/min", "samples/CPU-min", "tokens real / padded", "frame bytes"]
    table = Table(f"{plan.samples} texts, {plan.rounds} alternating rounds", columns)
    for r in data["rows"]:
        tokens, rate = r["encoder_tokens"], spreads(r["samples_per_min"])
        real = f"{tokens['real']:.0f} / {tokens['padded']:.0f} ({share(tokens['padded_share'])})"
        cpu = whole(r["samples_per_cpu_min"]["median"])
        table.rows.append([r["contender"], r["scope"], r["batch"], rate, cpu, real, whole(r["frame_bytes"])])
    for name, found in data["jobs"].items():
        rate = found.get("failed") or spreads(found["samples_per_min"])
        table.rows.append([name, "job", "default", rate, "", "", ""])
    table.rows += [[name, "not run", "", why[:160], "", "", ""] for name, why in data["not_run"].items()]
    return [table]
