"""Work shared out to the lanes of an engine: a thread for each takes the next piece whenever it is ready.

In: pieces, and what does one on a lane. Out: results, in order. Knows neither engines nor what a piece is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import TypeVar

L = TypeVar("L")
T = TypeVar("T")
R = TypeVar("R")


def share_out(lanes: Sequence[L], items: Sequence[T], work: Callable[[L, T, Event], R]) -> list[R]:
    """``work(lane, item, stop)`` for every item, as many at a time as there are lanes.

    When one fails, or this thread is interrupted, no further item begins, and ``stop`` asks those under way to end.

    Raises:
        what ``work`` raised first, by the order of lanes.
    """
    stop, next_one, todo = Event(), Lock(), iter(enumerate(items))
    if len(lanes) == 1:  # on this thread: some devices belong to the thread that opened them
        return [work(lanes[0], item, stop) for item in items]
    out: dict[int, R] = {}

    def follow(lane: L) -> None:
        while not stop.is_set():
            with next_one:
                index, item = next(todo, (-1, None))
            if item is None:
                return
            try:
                out[index] = work(lane, item, stop)
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(len(lanes), thread_name_prefix="latentwire-lane") as pool:
        threads = [pool.submit(follow, lane) for lane in lanes]
        try:
            for thread in threads:
                thread.result()
        except BaseException:
            stop.set()  # before the pool is left, which waits for its threads
            raise
    return [out[index] for index in range(len(items))]
