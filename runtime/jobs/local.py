"""The backend that spawns worker processes on this machine, one per device or group of cores.

A worker that dies, or is silent, or stands still is replaced; what it was doing is done again.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any, Final

from ...core.console import message
from ...core.errors import EnvironmentFault
from ..choices import OnPoison
from .board import Board
from .child import Child
from .pipes import error_from_json
from .places import places
from .task import Done, Failed, JobSpec, load_plan

TICK_S: Final = 1.0
STARTS: Final = 3
"""Workers that may die one after the other before any of them is ready."""
ENCODER: Final = "latentwire.runtime.jobs.task:open_encoder"


@dataclass(frozen=True)
class Patience:
    """Seconds after which a worker counts as dead.

    Attributes:
        silent_s: without a sign of life, which comes every two seconds: the process is frozen.
        start_s: until its encoder is open.
        work_s: without another finished group of rows; a group is 128 texts of up to 16 MiB.
    """

    silent_s: float = 120.0
    start_s: float = 900.0
    work_s: float = 3600.0


class LocalWorkers:
    """``--workers N``.

    Args:
        workers: how many at most; None: one per device, on CPUs one per group of four cores.
        on_poison: what to do about a shard that dies again and again.
        patience: when to give a worker up.
        encoder: ``module:function`` that opens an encoder in the worker.
    """

    def __init__(
        self,
        workers: int | None = None,
        on_poison: OnPoison = "bisect",
        patience: Patience | None = None,
        encoder: str = ENCODER,
    ) -> None:
        self._workers, self._on_poison, self._encoder = workers, on_poison, encoder
        self._patience = patience or Patience()
        self._children: dict[int, Child] = {}
        self._failed_starts = 0

    def run(self, spec: JobSpec, shards: Iterable[int], on_rows: Callable[[int, int], None]) -> Iterator[Done | Failed]:
        """See ``task.Backend``.

        Raises:
            EnvironmentFault: 5012 workers do not start; what opening the encoder raises.
            InputError: 2111 devices and workers that do not go together.
        """
        machines = places(spec.machine, self._workers, length_hint(shards, 0))
        specs = [replace(spec, machine=machine) for machine in machines]
        board = Board(shards, lambda number: load_plan(spec.plan).shards[number].rows, self._on_poison)
        while self._staff(specs, board):
            for event in self._wait(board):
                yield event
                if isinstance(event, Failed):
                    return
            for child in self._children.values():
                if child.work and child.work.rows is None:
                    on_rows(child.work.shard, child.rows)

    def close(self) -> None:
        """Kill what still works, wait for all."""
        children, self._children = self._children, {}
        for child in children.values():
            child.kill()
        for child in children.values():
            child.end()

    def pids(self) -> list[int]:
        """Numbers of the worker processes."""
        return [child.pid for child in self._children.values()]

    def _staff(self, specs: list[JobSpec], board: Board) -> bool:
        """Give everybody something to do. Whether anybody has."""
        for place, spec in enumerate(specs):
            child = self._children.get(place)
            if child is not None and child.work is not None:
                continue
            work = board.take()
            if work is None:
                break
            if child is None:
                child = self._children[place] = Child(place, spec, self._encoder)
            child.give(work)
        return not board.idle

    def _wait(self, board: Board) -> Iterator[Done | Failed]:
        """What comes within a second."""
        start = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for child in self._children.values():
                selector.register(child, selectors.EVENT_READ, child)
            heard = [key.data for key, _ in selector.select(TICK_S)]
        # While this process itself stands still, nobody's time runs.
        passed = min(time.monotonic() - start, 2 * TICK_S)
        for child in list(self._children.values()):
            child.waited(passed)
            if child in heard:
                yield from self._hear(child, board)
            elif why := self._impatient(child):
                yield from self._lost(child, board, why)

    def _hear(self, child: Child, board: Board) -> Iterator[Done | Failed]:
        try:
            for kind, value in child.hear():
                if kind == "ready":
                    child.ready, self._failed_starts = True, 0
                elif kind == "refused":
                    raise error_from_json(value)
                elif kind in ("done", "failed"):
                    yield from self._ended(child, board, kind, value)
        except EOFError:
            yield from self._lost(child, board)

    def _ended(self, child: Child, board: Board, kind: str, value: dict[str, Any]) -> Iterator[Done | Failed]:
        work, child.work = child.work, None
        if work is None:
            return
        if kind == "failed":
            yield Failed(work.shard, error_from_json(value))
        elif event := board.finished(work, value):
            yield event

    def _lost(self, child: Child, board: Board, why: str = "") -> Iterator[Failed]:
        """Its place is free again, and so is what it was doing."""
        del self._children[child.place]
        how = child.end(why)
        if not child.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise no_start(how)
        if child.work is None:
            return
        if not child.ready:
            board.give_back(child.work)
            return
        message(f"worker {child.place} died at shard {child.work.shard} and is replaced: {how}")
        if event := board.died(child.work, child.rows, how):
            yield event

    def _impatient(self, child: Child) -> str:
        p = self._patience
        if not child.ready:
            return f"not ready after {p.start_s:.0f} s" if child.unmoved_s > p.start_s else ""
        if child.unheard_s > p.silent_s:
            return f"no sign of life for {p.silent_s:.0f} s"
        if child.work is not None and child.unmoved_s > p.work_s:
            return f"no row finished within {p.work_s:.0f} s"
        return ""


def no_start(how: str) -> EnvironmentFault:
    """5012."""
    expected = f"expected one of {STARTS} to open its encoder; the last one: {how}"
    fix = "use fewer --workers if memory is short; --workers 0 works in this process and shows more"
    return EnvironmentFault(5012, "worker processes do not start", expected=expected, fix=fix)
