"""A whole job: plan, shards in order, manifest. The local, single-process backend."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ...core.console import track
from ..compress import latent_count
from ..options import CompressOptions
from ..pipeline import Pipeline
from .commit import JobFolder
from .plan import SHARD_ROWS, Plan, make_plan
from .records import Fields
from .shard import Job, canonical, run_shard
from .table import FORMAT, VERSION, TableInfo

_SUMS: Final = (
    "rows",
    "errors",
    "text_bytes",
    "payload_bytes",
    "wire_bytes",
    "tokens",
    "latents",
    "chunks",
    "truncated",
)


def plan_job(names: Sequence[str], fields: Fields | None = None, shard_rows: int = SHARD_ROWS) -> Plan:
    """Read the input once and show progress. Raises as ``make_plan``."""
    with track("read input", unit="rows") as bar:
        return make_plan(names, fields or Fields(), shard_rows, bar.advance)


def run_job(
    plan: Plan, out: Path, pipe: Pipeline, options: CompressOptions, *, overwrite: bool = False
) -> dict[str, Any]:
    """Compress everything that was planned into a new folder. Returns the manifest.

    Raises:
        EnvironmentFault: 5004, 5005, 5008.
        InputError: 2105, 2111.
    """
    encoder = pipe.bundle.manifest.encoder
    info = TableInfo(encoder.fingerprint, encoder.d_z, latent_count(pipe.engine, options), options.codec)
    facts = _facts(plan, options, info, pipe)
    folder = JobFolder(out)
    folder.create(facts, overwrite=overwrite)
    job = Job(folder, plan, options, info)
    with track("compress", plan.rows, "rows") as bar:
        commits = [run_shard(job, shard, pipe, bar.advance) for shard in plan.shards]
    manifest = {**facts, "shards": commits, "totals": totals(commits)}
    folder.finish(manifest)
    return manifest


def totals(commits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over shards."""
    by_code: Counter[str] = Counter()
    for commit in commits:
        by_code.update(commit["errors_by_code"])
    return {name: sum(c[name] for c in commits) for name in _SUMS} | {"errors_by_code": dict(sorted(by_code.items()))}


def _facts(plan: Plan, options: CompressOptions, info: TableInfo, pipe: Pipeline) -> dict[str, Any]:
    """What the job is; its fingerprint covers everything that may change a byte of the output."""
    tokenizer = pipe.bundle.manifest.files["encoder_tokenizer.json"].sha256
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "table": {k: v for k, v in asdict(info).items() if k != "rows"},
        "tokenizer": tokenizer,
        "options": {k: v for k, v in asdict(options).items() if k != "latents"},
        "inputs": [{"name": f.name, "bytes": f.size, "sha256": f.sha256, "rows": f.rows} for f in plan.files],
        "fields": asdict(plan.fields),
        "shard_rows": [s.rows for s in plan.shards],
    }
    return {**facts, "engine": pipe.engine.name, "fingerprint": hashlib.sha256(canonical(facts)).hexdigest()}
