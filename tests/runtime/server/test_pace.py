"""What a refused client is told: as long as half of what is held takes, within bounds."""

from __future__ import annotations

from latentwire.runtime.server.faults import headers_of, overloaded
from latentwire.runtime.server.pace import LONGEST_S, Pace


def test_seconds_follow_the_last_answers() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.seconds(1000) == 1  # nothing is known yet
    pace.ended()
    assert pace.seconds(1000) == 1
    for _ in range(10):
        now[0] += 0.1
        pace.ended()
    assert (pace.seconds(3), pace.seconds(100), pace.seconds(10_000)) == (1, 10, LONGEST_S)
    for _ in range(200):  # slower now; what was long ago does not count
        now[0] += 0.5
        pace.ended()
    assert pace.seconds(10) == 5


def test_the_header_says_it() -> None:
    assert headers_of(overloaded("answers", 5, 12)) == {"Retry-After": "12"}
    assert headers_of(overloaded("answers", 5)) == {"Retry-After": "1"}
