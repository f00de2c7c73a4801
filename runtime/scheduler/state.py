"""Which request runs when and in which row. Pure state: no clocks, no arrays, no text.

    scheduler.add(Job(1, prompt=50, limit=16))
    while step := scheduler.plan():
        ...                                  # do it, then say what ended
        scheduler.finish(1)

Rows are cut once for a pool: every row has the same number of cache slots. A request that does not fit the pool
waits until the rows are empty and are cut anew; nobody overtakes it meanwhile, so that it does not wait for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

CAPACITY_STEP: Final = 32
"""Cache slots of a row are a multiple of this, so that buffers are used again."""


@dataclass(frozen=True)
class Job:
    """One request, in positions.

    Attributes:
        key: names it; no two at a time have the same.
        prompt: positions of the prompt.
        limit: most new tokens.
        head: positions that are read first; beginnings and rests are padded each alone.
        kind: jobs of two kinds share no pool.
    """

    key: int
    prompt: int
    limit: int
    head: int = 0
    kind: int = 0

    @property
    def need(self) -> int:
        """Cache slots it takes."""
        return self.prompt + self.limit


@dataclass(frozen=True)
class Limits:
    """What the machine and the bundle allow.

    Attributes:
        rows: most rows of a pool.
        positions: most cache slots of all rows together; one row may exceed it alone.
        longest: most cache slots of one row.
        fixed: cache slots of every row where the bundle says so; 0: as many as are needed.
        step: cache slots are rounded up to a multiple of this.
        waiting: most jobs that wait; None: any number.
        refill: a free row takes the next job while others run; False: the next jobs wait for all rows.
        refill_at: with more jobs waiting than free rows, so many rows must be free. More: fewer, larger prefills.
        look: how many jobs behind those that are next may be preferred because they are about as long as the first.
        online: more jobs may come at any time: a pool has all rows, whoever is there when it is cut.
    """

    rows: int
    positions: int
    longest: int
    fixed: int = 0
    step: int = CAPACITY_STEP
    waiting: int | None = None
    refill: bool = True
    refill_at: int = 1
    look: int = 0
    online: bool = False


@dataclass(frozen=True)
class Prefill:
    """Read the prompts of ``placed``: pairs of row and job, in order of rows, into a pool of this size."""

    placed: tuple[tuple[int, Job], ...]
    rows: int
    capacity: int


@dataclass(frozen=True)
class Decode:
    """One more token for rows ``start`` to ``stop - 1``; nobody reads the answers of rows in ``idle``."""

    start: int
    stop: int
    running: tuple[tuple[int, Job], ...]
    idle: tuple[int, ...]


class Scheduler:
    """The queue and the rows."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most = limits.rows
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._alone: set[int] = set()
        self._rows: list[Job | None] = []
        self._row_of: dict[int, int] = {}
        self.capacity = 0

    @property
    def waiting(self) -> int:
        """Jobs without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs with a row."""
        return len(self._row_of)

    @property
    def rows(self) -> int:
        """Most rows of the next pool."""
        return self._most

    @property
    def fewest(self) -> int | None:
        """The same where memory was too small for what the limits say, else None."""
        return self._most if self._most < self.limits.rows else None

    def placed(self) -> list[tuple[int, Job]]:
        """Rows and the jobs that run in them."""
        return [(row, job) for row, job in enumerate(self._rows) if job is not None]

    def add(self, job: Job) -> bool:
        """Queue a job; False where too many wait already."""
        if job.key in self._waiting or job.key in self._row_of:
            raise ValueError(f"job {job.key} is here already")
        if self.limits.waiting is not None and len(self._waiting) >= self.limits.waiting:
            return False
        self._waiting[job.key] = job
        return True

    def finish(self, key: int) -> bool:
        """This job is done or given up: its place in the queue or its row is free. False where there is none."""
        self._alone.discard(key)
        row = self._row_of.pop(key, None)
        if row is None:
            return self._waiting.pop(key, None) is not None
        self._rows[row] = None
        return True

    def again(self, alone: Iterable[int] = ()) -> None:
        """Every running job goes back to the front of the queue, in the order it had; those named share no pool."""
        for key in sorted(self._row_of, key=lambda k: self._row_of[k], reverse=True):
            job = self._rows[self._row_of[key]]
            assert job is not None
            self._waiting[key] = job
            self._waiting.move_to_end(key, last=False)
        self._alone |= set(alone)
        self._row_of, self._rows = {}, []

    def fewer(self, tried: int) -> bool:
        """So many rows were too many for memory: halve the next pools. False where it was one row."""
        if tried <= 1:
            return False
        self._most = min(self._most, tried // 2)
        return True

    def restore(self) -> None:
        """Pools may have all their rows again."""
        self._most = self.limits.rows

    def plan(self) -> Prefill | Decode | None:
        """What to do next; None: nothing runs and nothing waits. A prefill's jobs count as running at once."""
        if not self._row_of:
            return self._begin() if self._waiting else None
        joining = self._joining()
        return self._place(joining) if joining else self._decode()

    def _decode(self) -> Decode:
        running = tuple(self.placed())
        start, stop = running[0][0], running[-1][0] + 1
        idle = tuple(row for row in range(start, stop) if self._rows[row] is None)
        return Decode(start, stop, running, idle)

    def _begin(self) -> Prefill:
        """Cut a new pool for the oldest job and those that go with it."""
        oldest = next(iter(self._waiting.values()))
        most = 1 if oldest.key in self._alone else self._most
        group = self._together(oldest, most, lambda group: self._fits(group))
        self.capacity = self._slots(group)
        rows = min(most, max(len(group), self.limits.positions // self.capacity))
        if not self.limits.refill:
            rows = len(group)
        elif not self.limits.online:
            rows = min(rows, len(self._waiting))
        self._rows = [None] * rows
        return self._place(group)

    def _joining(self) -> list[Job]:
        """Waiting jobs that take free rows now."""
        free = len(self._rows) - len(self._row_of)
        if not self.limits.refill or not free or not self._waiting:
            return []
        if free < min(self.limits.refill_at, len(self._rows)) and len(self._waiting) > free:
            return []
        oldest = next(iter(self._waiting.values()))
        return self._together(oldest, free, lambda group: self._joins(group[-1])) if self._joins(oldest) else []

    def _joins(self, job: Job) -> bool:
        """Whether it may share the pool that is running. Offline the jobs come longest first: when they need less
        than half a row, the rows are better cut anew."""
        running = next(job for job in self._rows if job is not None)
        if self._alone & {job.key, running.key} or job.kind != running.kind or job.need > self.capacity:
            return False
        return self.limits.online or bool(self.limits.fixed) or 2 * self._slots([job]) > self.capacity

    def _together(self, oldest: Job, most: int, allowed: Callable[[list[Job]], bool]) -> list[Job]:
        """The oldest job and up to ``most - 1`` of those next in the queue, in its order."""
        ahead = list(islice(self._waiting.values(), 1, most + self.limits.look))
        if self.limits.look:
            ahead.sort(key=lambda job: abs(job.prompt - oldest.prompt))  # stable: else the order of the queue
        group = [oldest]
        for job in ahead:
            if len(group) == most:
                break
            if job.kind == oldest.kind and job.key not in self._alone and allowed([*group, job]):
                group.append(job)
        return group

    def _fits(self, group: Sequence[Job]) -> bool:
        slots = self._slots(group)
        return len(group) * slots <= self.limits.positions and self._joint(group) <= self.limits.longest

    def _joint(self, group: Sequence[Job]) -> int:
        """Cache slots of the longest beginning and the longest rest together."""
        return max(job.head for job in group) + max(job.need - job.head for job in group)

    def _slots(self, group: Sequence[Job]) -> int:
        """Cache slots of a row."""
        need, step = self._joint(group), self.limits.step
        return self.limits.fixed or max(need, min(-(-need // step) * step, self.limits.longest))

    def _place(self, group: Sequence[Job]) -> Prefill:
        free = [row for row, job in enumerate(self._rows) if job is None]
        placed = tuple(zip(free, group, strict=False))
        for row, job in placed:
            del self._waiting[job.key]
            self._rows[row], self._row_of[job.key] = job, row
        return Prefill(placed, len(self._rows), self.capacity)
