"""A whole job: plan, shards by a backend, manifest."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ...core.console import track
from ..compress import latent_count
from ..options import CompressOptions, Machine
from ..pipeline import Pipeline
from .commit import JobFolder
from .fingerprint import describe_job
from .inprocess import InProcess
from .plan import SHARD_ROWS, Plan, make_plan
from .records import Fields
from .table import TableInfo
from .task import Backend, Done, JobSpec

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
    facts = describe_job(plan, options, info, pipe)
    folder = JobFolder(out)
    folder.create(facts, overwrite=overwrite)
    attempt = secrets.token_hex(4)
    plan_path = folder.path.absolute() / "_tmp" / attempt / "plan.json"
    plan.save(plan_path)
    spec = JobSpec(
        str(folder.path.absolute()),
        attempt,
        str(plan_path),
        str(pipe.bundle.path.absolute()),
        Machine(),
        options,
        info,
        facts["fingerprint"],
    )
    backend = InProcess(lambda spec: pipe)
    with track("compress", plan.rows, "rows") as bar:
        shown: Counter[int] = Counter()

        def on_rows(shard: int, done: int) -> None:
            bar.advance(done - shown[shard])
            shown[shard] = done

        commits = list(drive(backend, spec, range(len(plan.shards)), on_rows))
    commits.sort(key=lambda c: int(c["shard"]))
    manifest = {**facts, "shards": commits, "totals": totals(commits)}
    folder.finish(manifest)
    return manifest


def drive(
    backend: Backend, spec: JobSpec, pending: Iterable[int], on_rows: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Have shards run until all are committed; yields the facts of each commit. The first failure ends it.

    Raises:
        LatentWireError: of the first shard that failed.
    """
    for event in backend.run(spec, pending, on_rows):
        if isinstance(event, Done):
            yield event.facts
        else:
            raise event.error


def totals(commits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over shards."""
    by_code: Counter[str] = Counter()
    for commit in commits:
        by_code.update(commit["errors_by_code"])
    return {name: sum(c[name] for c in commits) for name in _SUMS} | {"errors_by_code": dict(sorted(by_code.items()))}
