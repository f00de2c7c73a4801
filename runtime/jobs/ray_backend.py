"""The backend that runs shards on Ray actors: one cluster, any number of nodes that share a file system.

Actors take no CPU from Ray's books, so that they never wait for one and never take what other jobs were promised;
for GPUs each takes one. An actor that dies, with its node or alone, is replaced; what it was doing is done again.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any

from ...core.console import is_debug, is_quiet, message
from ...core.errors import EnvironmentFault, InputError
from ...core.extras import needs
from ..choices import OnPoison
from .board import Board
from .local import ENCODER, STARTS, TICK_S, Patience, no_start
from .pipes import error_from_json, pack, unpack
from .places import CORES, CPU
from .poison import Work
from .shard_actor import ShardActor
from .task import VERSIONS, Done, Failed, JobSpec, load_plan


@dataclass
class _Member:
    """One actor. ``call`` is what it was last asked: to open, then to run ``work``."""

    actor: Any
    call: Any
    ready: bool = False
    work: Work | None = None
    rows: int = 0
    asked: Any = None
    unmoved_s: float = 0.0


class RayActors:
    """``--backend ray``.

    Args:
        workers: actors at most; None: one per GPU, on CPUs one per four cores of the cluster and at least one per node.
        on_poison: what to do about a shard that dies again and again.
        address: of a cluster; None: the one this process is connected to, else one of its own on this machine.
        patience: when to give an actor up.
        encoder: ``module:function`` that opens an encoder in the actor.

    Raises:
        EnvironmentFault: 5011 Ray is not installed.
    """

    def __init__(
        self,
        workers: int | None = None,
        on_poison: OnPoison = "bisect",
        address: str | None = None,
        patience: Patience | None = None,
        encoder: str = ENCODER,
    ) -> None:
        with needs("ray"):
            import ray
        self._ray: Any = ray
        self._workers, self._on_poison, self._address, self._encoder = workers, on_poison, address, encoder
        self._patience = patience or Patience()
        self._members: dict[int, _Member] = {}
        self._failed_starts = 0
        self._ours = False

    def run(self, spec: JobSpec, shards: Iterable[int], on_rows: Callable[[int, int], None]) -> Iterator[Done | Failed]:
        """See ``task.Backend``.

        Raises:
            EnvironmentFault: 5012 actors do not start; 5013 no such cluster, or a node that cannot take part; what
                opening the encoder raises.
            InputError: 2111 a device by number: Ray chooses them.
        """
        self._connect()
        count = self._count(spec, length_hint(shards, 0))
        spec = self._shared_out(spec, count)
        board = Board(shards, lambda number: load_plan(spec.plan).shards[number].rows, self._on_poison)
        while self._staff(spec, count, board):
            for event in self._wait(board):
                yield event
                if isinstance(event, Failed):
                    return
            for member in self._members.values():
                if member.work and member.work.rows is None:
                    on_rows(member.work.shard, member.rows)

    def close(self) -> None:
        """Kill the actors, and the cluster if it is ours."""
        members, self._members = self._members, {}
        for member in members.values():
            self._kill(member)
        if self._ours:
            self._ours = False
            self._ray.shutdown()

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        before = signal.getsignal(signal.SIGTERM)
        options = {"include_dashboard": False} if self._address is None else {}
        try:
            self._ray.init(
                self._address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **options,
            )
        except Exception as e:  # where a node is slow to start, Ray raises just that
            what, where = "Ray does not start here", "a cluster of its own"
            fix = "look at the files in the folder ray below the temporary one, or use --backend local"
            if self._address is not None:
                what, where = "no such Ray cluster", f"--address {self._address}"
                fix = "start one with `ray start --head`, or leave --address out"
            raise EnvironmentFault(5013, what, where=where, expected=str(e)[:200], fix=fix) from e
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray puts its own in place, which hides ours
        self._ours = True

    def _count(self, spec: JobSpec, pieces: int) -> int:
        has = self._ray.cluster_resources()
        if _kind(spec) == CPU:
            nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
            most = self._workers or max(nodes, int(has.get("CPU", 0)) // CORES)
        else:
            most = min(self._workers or 1 << 30, int(has.get("GPU", 0)))
            if most < 1:
                what = "the Ray cluster has no GPU"
                raise EnvironmentFault(5013, what, where=f"--device {spec.machine.device}", fix="pass --device cpu")
        return max(1, min(most, pieces or most))

    def _shared_out(self, spec: JobSpec, count: int) -> JobSpec:
        threads = spec.machine.threads or int(self._ray.cluster_resources().get("CPU", 1))
        return replace(spec, machine=replace(spec.machine, threads=max(1, threads // count)))

    def _staff(self, spec: JobSpec, count: int, board: Board) -> bool:
        for place in range(count):
            member = self._members.get(place)
            if member is not None and member.work is not None:
                continue
            work = board.take()
            if work is None:
                break
            if member is None:
                member = self._members[place] = self._hire(spec)
            member.work, member.rows, member.unmoved_s = work, 0, 0.0
            if member.ready:
                self._begin(member, work)
        return not board.idle

    def _hire(self, spec: JobSpec) -> _Member:
        kind = self._ray.remote(ShardActor).options(
            num_cpus=0,
            num_gpus=0 if _kind(spec) == CPU else 1,
            max_restarts=0,
            max_concurrency=2,  # ``rows`` is asked while ``run`` runs
            scheduling_strategy="SPREAD",
        )
        actor: Any = kind.remote()
        facts = {"quiet": is_quiet(), "debug": is_debug(), "versions": VERSIONS}
        opening = {"spec": spec.to_json(), "encoder": self._encoder, **facts}
        return _Member(actor, actor.open.remote(pack("open", opening)))

    def _begin(self, member: _Member, work: Work) -> None:
        member.call = member.actor.run.remote(pack("work", work.to_json()))

    def _wait(self, board: Board) -> Iterator[Done | Failed]:
        start = time.monotonic()
        busy = {place: m for place, m in self._members.items() if m.work is not None}
        heard, _ = self._ray.wait([m.call for m in busy.values()], num_returns=1, timeout=TICK_S)
        passed = min(time.monotonic() - start, 2 * TICK_S)
        for place, member in busy.items():
            member.unmoved_s += passed
            if member.call in heard:
                yield from self._hear(place, member, board)
            else:
                self._ask_rows(member)
                limit = self._patience.work_s if member.ready else self._patience.start_s
                if member.unmoved_s > limit:
                    yield from self._lost(place, member, board, f"nothing happened within {limit:.0f} s")

    def _hear(self, place: int, member: _Member, board: Board) -> Iterator[Done | Failed]:
        try:
            kind, value = unpack(self._ray.get(member.call))
        except self._ray.exceptions.RayError as e:
            yield from self._lost(place, member, board, str(e).strip().partition("\n")[0])
            return
        work = member.work
        assert work is not None
        if kind == "ready":
            member.ready, member.unmoved_s, self._failed_starts = True, 0.0, 0
            self._begin(member, work)
        elif kind == "refused":
            raise error_from_json(value)
        elif kind == "broken":
            yield from self._lost(place, member, board, value)
        else:
            member.work = None
            event = Failed(work.shard, error_from_json(value)) if kind == "failed" else board.finished(work, value)
            if event:
                yield event

    def _lost(self, place: int, member: _Member, board: Board, how: str) -> Iterator[Failed]:
        del self._members[place]
        self._kill(member)
        work = member.work
        assert work is not None
        if not member.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise no_start(how)
            board.give_back(work)
            return
        message(f"actor {place} died at shard {work.shard} and is replaced: {how}")
        if event := board.died(work, member.rows, how):
            yield event

    def _ask_rows(self, member: _Member) -> None:
        """A look at how far it is, which waits for nothing."""
        if not member.ready:
            return
        if member.asked is None:
            member.asked = member.actor.rows.remote()
        elif self._ray.wait([member.asked], timeout=0)[0]:
            with contextlib.suppress(self._ray.exceptions.RayError):  # its call says so too
                rows = self._ray.get(member.asked)
                member.unmoved_s = member.unmoved_s if rows == member.rows else 0.0
                member.rows = rows
            member.asked = None

    def _kill(self, member: _Member) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)


def _kind(spec: JobSpec) -> str:
    """``cpu`` or ``cuda``. Raises InputError 2111 for anything closer."""
    kind, _, number = spec.machine.device.partition(":")
    if number:
        fix = "pass --device cuda; --workers says how many"
        raise InputError(2111, "Ray chooses the GPUs", where=f"--device {spec.machine.device}", fix=fix)
    return kind
