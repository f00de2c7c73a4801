"""The scheduler alone: nothing lost, doubled or overtaken for ever; rows never shared; memory never exceeded."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.runtime.scheduler.state import Decode, Job, Limits, Prefill, Scheduler

LIMITS = st.builds(
    Limits,
    rows=st.integers(1, 6),
    positions=st.integers(1, 600),
    longest=st.just(200),
    step=st.sampled_from([1, 32]),
    fixed=st.sampled_from([0, 0, 200]),
    waiting=st.sampled_from([None, 3]),
    refill=st.booleans(),
    refill_at=st.integers(1, 4),
    look=st.integers(0, 4),
    online=st.booleans(),
)
# prompt, limit, kind; where batches are whole, jobs of kind 1 begin with a head of their own
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 1))
EVENTS = st.lists(st.one_of(SIZES, st.sampled_from(["step", "step", "cancel", "again", "fewer"])), max_size=60)


@dataclass
class World:
    """Runs a scheduler as the loop does and checks every step."""

    limits: Limits
    scheduler: Scheduler = field(init=False)
    left: dict[int, int] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)
    taken: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    alone: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)

    def add(self, key: int, prompt: int, limit: int, kind: int) -> None:
        job = Job(key, prompt, limit, head=prompt // 2 if kind and not self.limits.refill else 0, kind=kind)
        queued = self.scheduler.waiting
        full = self.limits.waiting is not None and queued >= self.limits.waiting
        assert self.scheduler.add(job) is not full
        if not full:
            self.taken.append(key)
            self.left[key] = limit

    def step(self) -> bool:
        waiting, running = self.scheduler.waiting, self.scheduler.running
        plan = self.scheduler.plan()
        if plan is None:
            assert waiting == running == 0
            return False
        if isinstance(plan, Prefill):
            self.prefilled(plan, waiting, running)
        else:
            self.decoded(plan)
        return True

    def prefilled(self, plan: Prefill, waiting: int, running: int) -> None:
        if not self.rows:
            self.sizes = (plan.rows, plan.capacity)
            assert plan.rows <= self.scheduler.rows
            assert plan.rows * plan.capacity <= self.limits.positions or plan.rows == 1
            assert plan.capacity == self.limits.fixed or plan.capacity <= self.limits.longest
        assert self.limits.refill or not running
        assert (plan.rows, plan.capacity) == self.sizes
        assert [row for row, _ in plan.placed] == sorted({row for row, _ in plan.placed})
        for row, job in plan.placed:
            assert row not in self.rows
            assert 0 <= row < plan.rows
            assert job.need <= plan.capacity
            self.rows[row] = job.key
        jobs = [job for _, job in plan.placed]
        begun, rest = max(job.head for job in jobs), max(job.prompt - job.head for job in jobs)
        assert begun + rest <= plan.capacity
        assert not self.alone & set(self.rows.values()) or len(self.rows) == 1
        assert self.scheduler.waiting == waiting - len(jobs)
        self.advance([job.key for job in jobs])

    def decoded(self, plan: Decode) -> None:
        assert dict(plan.running) == dict(self.scheduler.placed())
        assert {row: job.key for row, job in plan.running} == self.rows
        inside = set(range(plan.start, plan.stop))
        assert inside == {row for row, _ in plan.running} | set(plan.idle)
        assert len(plan.running) + len(plan.idle) == len(inside)
        self.advance([job.key for _, job in plan.running])

    def advance(self, keys: list[int]) -> None:
        for key in keys:
            self.left[key] -= 1
            assert self.left[key] >= 0
            if not self.left[key]:
                self.end(key)

    def end(self, key: int) -> None:
        assert self.scheduler.finish(key)
        assert not self.scheduler.finish(key)
        self.rows = {row: held for row, held in self.rows.items() if held != key}
        self.ended.append(key)
        self.alone.discard(key)

    def again(self, limits: dict[int, int]) -> None:
        held = [self.rows[row] for row in sorted(self.rows)]
        alone = held[-1:]
        self.alone |= set(alone)
        self.scheduler.again(alone)
        for key in held:
            self.left[key] = limits[key]
        self.rows = {}


@given(LIMITS, EVENTS)
def test_every_job_ends_once_and_rows_are_never_shared(limits: Limits, events: list[object]) -> None:
    world, asked = World(limits), {}
    for key, event in enumerate(events):
        if isinstance(event, tuple):
            prompt, limit, kind = event
            asked[key] = limit
            world.add(key, prompt, limit, kind)
        elif event == "step":
            world.step()
        elif event == "again":
            world.again(asked)
        elif event == "fewer":
            world.again(asked)
            world.scheduler.fewer(world.scheduler.rows)
        elif open_keys := [k for k in world.taken if k not in world.ended]:
            world.end(open_keys[len(open_keys) // 2])
    steps = 0
    while world.step():
        steps += 1
        assert steps <= 41 * (len(events) + 1)
    assert sorted(world.ended) == sorted(world.taken)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=40), LIMITS)
def test_the_oldest_is_in_every_admission(jobs: list[tuple[int, int]], limits: Limits) -> None:
    """So a job waits for at most as many admissions as jobs were ahead of it, whoever comes later."""
    scheduler = Scheduler(Limits(**{**limits.__dict__, "waiting": None}))
    queue = []
    for key, (prompt, limit) in enumerate(jobs):
        scheduler.add(Job(key, prompt, limit))
        queue.append(key)
    left = {key: limit for key, (_, limit) in enumerate(jobs)}
    while plan := scheduler.plan():
        keys = [job.key for _, job in (plan.placed if isinstance(plan, Prefill) else plan.running)]
        if isinstance(plan, Prefill):
            assert queue[0] in keys
            queue = [key for key in queue if key not in keys]
            if not limits.look and limits.online and not limits.fixed and limits.positions >= 600 * limits.rows:
                assert keys == sorted(keys)
        for key in keys:
            left[key] -= 1
            if not left[key]:
                scheduler.finish(key)
    assert not queue


def test_a_free_row_is_refilled_while_others_run() -> None:
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200))
    for key in range(3):
        scheduler.add(Job(key, 10, 5))
    first = scheduler.plan()
    assert isinstance(first, Prefill)
    assert [(row, job.key) for row, job in first.placed] == [(0, 0), (1, 1)]
    scheduler.finish(0)
    second = scheduler.plan()
    assert isinstance(second, Prefill)
    assert [(row, job.key) for row, job in second.placed] == [(0, 2)]
    third = scheduler.plan()
    assert isinstance(third, Decode)
    assert (third.start, third.stop, third.idle) == (0, 2, ())
    scheduler.finish(2)
    last = scheduler.plan()
    assert isinstance(last, Decode)
    assert (last.start, last.stop) == (1, 2)  # rows at the edges that nobody reads are not computed


def test_a_batch_at_a_time_waits_for_all_rows() -> None:
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200, refill=False))
    for key in range(3):
        scheduler.add(Job(key, 10, 5))
    assert isinstance(scheduler.plan(), Prefill)
    scheduler.finish(0)
    assert isinstance(scheduler.plan(), Decode)


def test_fewer_larger_prefills() -> None:
    scheduler = Scheduler(Limits(rows=4, positions=1000, longest=200, refill_at=2))
    for key in range(8):
        scheduler.add(Job(key, 10, 5))
    scheduler.plan()
    scheduler.finish(0)
    assert isinstance(scheduler.plan(), Decode)  # one free row does not stop the other three
    scheduler.finish(2)
    plan = scheduler.plan()
    assert isinstance(plan, Prefill)
    assert [row for row, _ in plan.placed] == [0, 2]


def test_a_job_that_must_be_alone_joins_nobody_and_nobody_joins_it() -> None:
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200))
    for key in range(3):
        scheduler.add(Job(key, 10, 5))
    scheduler.plan()
    scheduler.again(alone=[1])
    together = []
    while plan := scheduler.plan():
        together.append([job.key for _, job in scheduler.placed()])
        if isinstance(plan, Decode):
            scheduler.finish(plan.running[0][1].key)
    assert [keys for i, keys in enumerate(together) if keys not in together[:i]] == [[0], [1], [2]]
    assert not any(1 in keys and len(keys) > 1 for keys in together)


def test_a_job_that_does_not_fit_the_pool_is_not_overtaken() -> None:
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200, online=True))
    scheduler.add(Job(0, 10, 5))
    scheduler.plan()
    scheduler.add(Job(1, 100, 5))
    scheduler.add(Job(2, 10, 5))
    assert isinstance(scheduler.plan(), Decode)
    scheduler.finish(0)
    plan = scheduler.plan()
    assert isinstance(plan, Prefill)
    assert [job.key for _, job in plan.placed] == [1, 2]
    assert plan.capacity == 128


def test_jobs_of_a_length_are_preferred_within_sight() -> None:
    lengths = [10, 40, 11, 60, 12]
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200, look=3))
    for key, prompt in enumerate(lengths):
        scheduler.add(Job(key, prompt, 5))
    plan = scheduler.plan()
    assert isinstance(plan, Prefill)
    assert [job.prompt for _, job in plan.placed] == [10, 11]


def test_offline_rows_are_cut_anew_for_much_shorter_jobs() -> None:
    for online, kind in ((False, Decode), (True, Prefill)):
        scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200, online=online))
        for key, prompt in enumerate([140, 140, 20]):
            scheduler.add(Job(key, prompt, 5))
        scheduler.plan()
        scheduler.finish(0)
        assert isinstance(scheduler.plan(), kind)


def test_two_jobs_of_a_name_are_a_mistake() -> None:
    scheduler = Scheduler(Limits(rows=2, positions=1000, longest=200))
    scheduler.add(Job(0, 10, 5))
    with pytest.raises(ValueError, match="here already"):
        scheduler.add(Job(0, 10, 5))
    scheduler.plan()
    with pytest.raises(ValueError, match="here already"):
        scheduler.add(Job(0, 10, 5))
