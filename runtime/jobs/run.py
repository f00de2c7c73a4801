"""A whole job: the folder, the shards that are left, the manifest."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import disk
from ...core.console import track
from ...engines.bundle import Bundle
from ..choices import VerifyName
from ..compress import latent_count
from ..options import CompressOptions, Machine
from .budget import Budget
from .commit import TMP, JobFolder, job_faults
from .fingerprint import describe_job, encoder_files
from .lock import job_lock
from .plan import SHARD_ROWS, Plan
from .planner import make_plan
from .progress import job_progress
from .records import Fields
from .resume import Opened, open_job, require_free
from .table import TableInfo
from .task import Backend, Done, JobSpec
from .totals import make_manifest


@dataclass(frozen=True)
class Job:
    """What is to be done: all that may change a byte.

    Attributes:
        plan: files, rows, shards.
        options: how texts become frames.
        table: what all rows share.
        bundle: folder of the bundle.
        files: its files that matter and their SHA-256.
    """

    plan: Plan
    options: CompressOptions
    table: TableInfo
    bundle: Path
    files: Mapping[str, str]


@dataclass(frozen=True)
class RunOptions:
    """How a job is run; may differ from one run to the next.

    Attributes:
        overwrite: replace another or a finished job in the folder.
        fsync: False: leave it to the system when files reach the disk; a power cut may then cost shards.
        verify: how the shards of an earlier run are checked.
        budget: bad rows that are borne.
    """

    overwrite: bool = False
    fsync: bool = True
    verify: VerifyName = "size"
    budget: Budget = field(default_factory=Budget)


def plan_job(names: Sequence[str], fields: Fields | None = None, shard_rows: int = SHARD_ROWS) -> Plan:
    """Read the input once and show progress. Raises as ``make_plan``."""
    with track("read input", unit="rows") as bar:
        return make_plan(names, fields or Fields(), shard_rows, bar.advance)


def describe(plan: Plan, bundle: Bundle, options: CompressOptions) -> Job:
    """The job of a plan and a verified bundle.

    Raises:
        InputError: 2111 the bundle cannot make what the options ask for.
    """
    encoder = bundle.manifest.encoder
    table = TableInfo(
        encoder.fingerprint, encoder.d_z, latent_count(encoder, options), options.codec, keep=plan.fields.keep
    )
    return Job(plan, options, table, bundle.path, encoder_files(bundle))


def run_job(
    job: Job, out: Path, backend: Backend, machine: Machine, options: RunOptions | None = None
) -> dict[str, Any]:
    """Do what is left of a job. Returns the manifest. The backend is closed.

    Args:
        job: what is to be done.
        out: where.
        backend: who runs shards.
        machine: of one encoder.
        options: how.

    Raises:
        EnvironmentFault: 5004, 5005, 5007 the disk; 5006 another process works in the folder; 5008 it holds
            something else; what a shard raises.
        InputError: 2105, 2108, 2109 the folder holds another job; 2112 too many bad rows.
    """
    options = options or RunOptions()
    require_free(out)
    folder = JobFolder(out, sync=options.fsync)
    with contextlib.closing(backend), contextlib.ExitStack() as stack:
        with job_faults(out):
            disk.make_folder(out, sync=options.fsync)
            stack.enter_context(job_lock(out, sync=options.fsync))
        return _run(job, folder, backend, machine, options)


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


def _run(job: Job, folder: JobFolder, backend: Backend, machine: Machine, options: RunOptions) -> dict[str, Any]:
    attempt = secrets.token_hex(4)
    facts = describe_job(job.plan, job.options, job.table, job.files)
    shards = len(job.plan.shards)
    opened = open_job(folder, facts, shards, attempt, overwrite=options.overwrite, verify=options.verify)
    if opened.finished is None:
        try:
            if len(opened.done) < shards:
                _run_shards(job, folder, backend, options, opened, _spec(job, folder, machine, opened, attempt))
            manifest = make_manifest(opened.job, _commits(folder, shards))
            folder.finish(attempt, manifest)
        except BaseException:
            with contextlib.suppress(OSError):
                backend.close()
                disk.remove_tree(folder.path / TMP / attempt)
            raise
    else:
        manifest = opened.finished
    folder.clean()
    return manifest


def _spec(job: Job, folder: JobFolder, machine: Machine, opened: Opened, attempt: str) -> JobSpec:
    home = folder.path.absolute()
    plan = home / TMP / attempt / "plan.json"
    with job_faults(plan):
        job.plan.save(plan)
    return JobSpec(
        folder=str(home),
        attempt=attempt,
        plan=str(plan),
        bundle=str(job.bundle.absolute()),
        machine=machine,
        options=job.options,
        table=job.table,
        fingerprint=opened.job["fingerprint"],
        fsync=folder.sync,
    )


def _run_shards(
    job: Job, folder: JobFolder, backend: Backend, options: RunOptions, opened: Opened, spec: JobSpec
) -> None:
    rows, totals, where = job.plan.rows, opened.totals, str(folder.path)
    options.budget.check(totals["errors"], rows, where)
    pending = [s.number for s in job.plan.shards if s.number not in opened.done]
    with job_progress(folder, spec.attempt, rows, totals) as progress:
        for facts in drive(backend, spec, pending, progress.on_rows):
            totals.add(facts)
            progress.committed(facts)
            options.budget.check(totals["errors"], rows, where)


def _commits(folder: JobFolder, shards: int) -> Iterator[dict[str, Any]]:
    """The records as they are on the disk, not as they were told."""
    for number in range(shards):
        with job_faults(folder.commit_file(number)):
            found = folder.read_commit(number)
        yield found
