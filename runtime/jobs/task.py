"""What a backend is told and what it says back: the border between the job and whoever runs its shards.

In: one JobSpec, which is plain JSON, and numbers of shards. Out: events, which are plain JSON too. A shard is run
by ``run_shard`` wherever that may be; it reads, compresses, writes and commits, and depends on nothing but the
spec, its number and the encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

from ...core.errors import LatentWireError
from ..options import CompressOptions, Machine
from .commit import JobFolder
from .plan import Plan
from .shard import Encoder, compress_rows, count_rows, describe_input, verify_table
from .table import TableInfo, write_table

GROUP: Final = 128
"""Rows compressed together; sorted by length among themselves. Part of the job's fingerprint."""
VERSIONS: Final = {name: version(name) for name in ("latentwire", "pyarrow", "numpy")}
"""Of what wrote a shard; stands in its commit."""


@dataclass(frozen=True)
class JobSpec:
    """All that is needed to run any shard of one job, on any machine that sees the same files.

    Attributes:
        folder: the job's folder, absolute.
        attempt: name of this run's folder below ``_tmp``.
        plan: file that holds the plan, absolute; as ``Plan.save`` wrote it.
        bundle: folder of the bundle, absolute; verified by the parent, so ``size`` is enough for a worker.
        machine: device, engine and threads of one encoder.
        options: how texts become frames.
        table: what all rows of all tables share.
        fingerprint: of the job; stands in every commit.
        fsync: False: leave it to the system when files reach the disk.
    """

    folder: str
    attempt: str
    plan: str
    bundle: str
    machine: Machine
    options: CompressOptions
    table: TableInfo
    fingerprint: str
    fsync: bool = True

    def to_json(self) -> dict[str, Any]:
        """For a pipe to a worker; ``from_json`` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> JobSpec:
        """The spec that ``to_json`` described."""
        parts = {"machine": Machine, "options": CompressOptions, "table": TableInfo}
        return cls(**{name: parts[name](**value) if name in parts else value for name, value in found.items()})


@dataclass(frozen=True)
class Done:
    """The shard is committed; ``facts`` is its commit record."""

    shard: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The shard cannot be done, however often it is tried. The job stops."""

    shard: int
    error: LatentWireError


class Backend(Protocol):
    """Who runs shards. ``InProcess`` is the simplest one."""

    def run(self, spec: JobSpec, shards: Iterable[int], on_rows: Callable[[int, int], None]) -> Iterator[Done | Failed]:
        """Run every shard of ``shards``, which is read no further ahead than there are workers to feed.

        Yields one Done or Failed a shard, in any order. A shard that died with its worker is tried again inside
        the backend. ``on_rows(shard, done)`` hears how many rows of a shard are finished so far (less than before
        where a shard is tried again), about once a second even if nothing changed: the caller shows progress then.
        Ctrl-C and SIGTERM come as exceptions out of whatever waits here; ``close`` follows.
        """

    def close(self) -> None:
        """Stop all workers within a few seconds and wait for them; may be called twice."""


def open_encoder(spec: JobSpec) -> Encoder:
    """The real encoder of a job. Raises as ``Pipeline.open``."""
    from ..pipeline import COMPRESS_PARTS, Pipeline

    return Pipeline.open(spec.bundle, parts=COMPRESS_PARTS, verify="size", **asdict(spec.machine))


def run_shard(
    spec: JobSpec,
    number: int,
    encoder: Encoder,
    *,
    rows: range | None = None,
    poison: Collection[int] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Do one shard. Returns the facts of its commit.

    Args:
        spec: the job.
        number: which shard.
        encoder: open.
        rows: None: the whole shard, written and committed. A range (from 0 within the shard): only these are
            compressed and nothing is written, to find out whether the process survives them; returns no facts.
        poison: rows (from 0 within the shard) that kill the process: they get error 5003 and are not compressed.
        on_rows: hears how many rows of the shard are finished so far.

    Raises:
        InputError: 2105 and what reading raises.
        EnvironmentFault: 5004, 5005, 5007 and what the encoder's machine raises.
    """
    plan = load_plan(spec.plan)
    shard = plan.shards[number]
    records = plan.read(shard)
    if rows is not None:
        for _ in compress_rows(records[rows.start : rows.stop], encoder, spec.options, GROUP):
            pass
        return {}
    table: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    how: dict[str, Any] = {"poison": poison, "first": shard.first, "dedupe": plan.fields.dedupe}
    for row, error in compress_rows(records, encoder, spec.options, GROUP, **how):
        table.append(row)
        failed += [error] if error else []
        if len(table) % GROUP == 0 or len(table) == len(records):
            on_rows(len(table))
    folder = JobFolder(Path(spec.folder), sync=spec.fsync)
    facts = {
        "shard": number,
        "fingerprint": spec.fingerprint,
        "fsync": spec.fsync,
        **encoder.describe(),
        "device": spec.machine.device.partition(":")[0],
        "versions": VERSIONS,
        **describe_input(plan, shard),
        **count_rows(table),
        **({"poison": sorted(poison)} if poison else {}),
        **folder.put_table(
            number,
            spec.attempt,
            lambda file: write_table(file, table, spec.table),
            lambda data: verify_table(data, len(table), folder.part(number)),
        ),
        **folder.put_errors(number, spec.attempt, failed),
    }
    folder.commit(number, spec.attempt, facts)
    return facts


@functools.lru_cache(maxsize=2)
def load_plan(path: str) -> Plan:
    """The plan in a file; kept, as every shard asks. The file belongs to one attempt and never changes."""
    return Plan.load(Path(path))
