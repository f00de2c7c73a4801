"""Finding the rows that kill: every pattern of deaths ends, and blames the right rows and no other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.runtime.jobs.board import Board
from latentwire.runtime.jobs.poison import MOST_POISON, TRIES, Suspect, Work
from latentwire.runtime.jobs.task import GROUP, Done, Failed

ROWS = 700


def kills(work: Work, killers: set[int], rows: int = ROWS, group: int = GROUP) -> int | None:
    """How many rows a worker finishes before it dies; None: it lives. Rows of a group die together."""
    part = work.rows or range(rows)
    for at in range(part.start, part.stop, group):
        if killers & set(range(at, min(at + group, part.stop))) - set(work.poison):
            return at - part.start
    return None


def settle(suspect: Suspect, killers: set[int], told: int | None = None) -> tuple[int, int]:
    """(deaths, pieces of work) until the whole shard lives or is given up; ``told``: the rows said to be finished."""
    deaths = pieces = 0
    while not suspect.given_up:
        work = suspect.next()
        pieces += 1
        done = kills(work, killers)
        if done is not None:
            deaths += 1
            suspect.died(work, done if told is None else told, "boom")
        elif work.rows is None:
            break
        else:
            suspect.survived(work)
    return deaths, pieces


@given(st.sets(st.integers(0, ROWS - 1), max_size=6))
def test_exactly_the_killers_are_found(killers: set[int]) -> None:
    suspect = Suspect(3, ROWS, GROUP)
    deaths, _ = settle(suspect, killers)
    assert not suspect.given_up
    assert suspect.poison == killers
    assert deaths <= len(killers) * (2 * TRIES + 8)


def test_a_row_is_found_without_reading_the_whole_shard_again() -> None:
    suspect = Suspect(0, ROWS, GROUP)
    _, pieces = settle(suspect, {300})
    assert suspect.poison == {300}
    assert pieces < 25


def test_stray_kills_blame_nobody() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        suspect = Suspect(0, ROWS, GROUP)
        strays = rng.randint(1, 2 * TRIES - 1)
        while not suspect.given_up:
            work = suspect.next()
            if strays and rng.random() < 0.6:
                strays -= 1
                suspect.died(work, rng.randrange(0, ROWS, GROUP), "stray")
            elif work.rows is None:
                break
            else:
                suspect.survived(work)
        assert not suspect.poison
        assert not suspect.given_up


def test_found_though_the_count_of_finished_rows_is_old() -> None:
    suspect = Suspect(0, ROWS, GROUP)
    settle(suspect, {400}, told=0)
    assert suspect.poison == {400}


def test_a_single_row_must_die_again_and_again() -> None:
    suspect = Suspect(0, 1, GROUP)
    for _ in range(TRIES):
        suspect.died(suspect.next(), 0, "x")
    for _ in range(TRIES - 1):
        assert suspect.next() == Work(0, range(1))
        suspect.died(suspect.next(), 0, "x")
    suspect.survived(suspect.next())
    assert suspect.next() == Work(0)
    assert not suspect.poison


def test_5003_where_no_row_is_to_blame() -> None:
    suspect = Suspect(5, ROWS, GROUP)
    for _ in range(1000):
        if suspect.given_up:
            break
        work = suspect.next()
        suspect.died(work, 0, "no memory") if work.rows is None else suspect.survived(work)
    error = suspect.error()
    assert (error.code, error.where, error.exit_code) == (5003, "shard 5", 6)
    assert "none of its rows does alone" in error.expected
    assert "no memory" in error.expected
    assert not suspect.poison


def test_5003_where_every_row_kills() -> None:
    suspect = Suspect(5, ROWS, GROUP)
    deaths, _ = settle(suspect, set(range(ROWS)))
    assert len(suspect.poison) == MOST_POISON + 1
    assert str(MOST_POISON) in suspect.error().expected
    assert deaths < 150


def test_5003_at_once_if_told_to_fail() -> None:
    suspect = Suspect(5, ROWS, GROUP, "fail")
    assert settle(suspect, {1}) == (TRIES, TRIES)
    assert "--on-poison" in suspect.error().expected


def test_death_while_writing_is_not_taken_for_a_row() -> None:
    suspect = Suspect(5, ROWS, GROUP)
    for _ in range(TRIES):
        suspect.died(suspect.next(), ROWS, "disk")
    assert suspect.next() == Work(5, range(ROWS))


def test_work_survives_a_pipe() -> None:
    for work in (Work(3), Work(4, range(2, 9), (5, 7))):
        assert Work.from_json(work.to_json()) == work


# --- the board --------------------------------------------------------------------------------------------


def test_the_board_reads_no_further_than_asked() -> None:
    asked = iter(range(1000))
    board = Board(asked, lambda n: ROWS)
    first, second = board.take(), board.take()
    assert (first, second) == (Work(0), Work(1))
    assert next(asked) == 2


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_shard_is_done_once_whatever_dies(workers: int) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        killers = {n: {rng.randrange(ROWS)} for n in rng.sample(range(12), 3)}
        board = Board(range(12), lambda n: ROWS)
        events: list[Done | Failed] = []
        busy: list[Work] = []
        while True:
            while len(busy) < workers and (work := board.take()):
                busy.append(work)
            if not busy:
                break
            assert not board.idle
            work = busy.pop(rng.randrange(len(busy)))
            done = kills(work, killers.get(work.shard, set()))
            if rng.random() < 0.05:
                board.give_back(work)
                continue
            event = board.died(work, done, "x") if done is not None else board.finished(work, {"p": work.poison})
            events += [event] if event else []
        assert board.idle
        assert not board._suspects  # nothing stays of what is done
        assert sorted(e.shard for e in events) == list(range(12))
        found = {e.shard: set(e.facts["p"]) for e in events if isinstance(e, Done) and e.facts["p"]}
        assert found == killers


def test_5003_the_board_gives_a_shard_up() -> None:
    board = Board([7], lambda n: ROWS, "fail")
    for _ in range(TRIES - 1):
        work = board.take()
        assert work
        assert board.died(work, 0, "x") is None
    work = board.take()
    assert work
    event = board.died(work, 0, "x")
    assert isinstance(event, Failed)
    assert (event.shard, event.error.code) == (7, 5003)
    assert board.take() is None
