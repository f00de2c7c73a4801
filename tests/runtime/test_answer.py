"""Stop rules and streaming of one answer; batches of requests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.runtime.answer import Growing
from latentwire.runtime.micro_batches import micro_batches, pieces

EOS = 257


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def run(
    data: bytes, *, stop: tuple[str, ...] = ("\n",), limit: int = 1000, eos: bool = True
) -> tuple[Growing, list[str]]:
    growing = Growing(decode, {EOS}, stop, limit)
    pieces: list[str] = []
    for token in [*data, EOS] if eos else list(data):
        if growing.stopped:
            break
        pieces.append(growing.feed(token))
    return growing, pieces


@pytest.mark.parametrize(
    ("data", "text", "stop"),
    [
        (b" Paris", "Paris", "eos"),
        (b" Paris\nQuestion", "Paris", "stop"),
        (b"\n", "", "stop"),
        (b"", "", "eos"),
        (b" New  York ", "New  York", "eos"),
    ],
)
def test_stops(data: bytes, text: str, stop: str) -> None:
    growing, pieces = run(data)
    assert (growing.text, growing.stopped) == (text, stop)
    assert "".join(pieces) == text


def test_limit_counts_tokens() -> None:
    growing, pieces = run(b"abcdef", limit=3)
    assert (growing.text, growing.stopped, growing.new_tokens) == ("abc", "length", 3)
    assert pieces == ["a", "b", "c"]


def test_half_a_character_is_held_back() -> None:
    _, pieces = run("aé日".encode())
    assert pieces == ["a", "", "é", "", "", "日", ""]


def test_start_of_a_stop_string_is_held_back() -> None:
    growing, pieces = run(b"ab##c###d", stop=("###",))
    assert pieces == ["a", "b", "", "", "##c", "", "", ""]
    assert growing.text == "ab##c"


@given(
    data=st.binary(max_size=30) | st.text(max_size=12).map(str.encode),
    stop=st.lists(st.text("ab# \n", min_size=1, max_size=3), max_size=2).map(tuple),
    limit=st.integers(1, 20),
)
def test_pieces_joined_are_the_text(data: bytes, stop: tuple[str, ...], limit: int) -> None:
    growing, pieces = run(data, stop=stop, limit=limit)
    assert "".join(pieces) == growing.text
    assert growing.stopped
    assert not any(s.strip() and s in growing.text for s in stop)


@given(lengths=st.lists(st.integers(1, 50), max_size=30), size=st.integers(1, 8))
def test_micro_batches(lengths: list[int], size: int) -> None:
    batches = micro_batches(lengths, size)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert [lengths[i] for b in batches for i in b] == sorted(lengths, reverse=True)
    assert all(len(b) == size for b in batches[:-1])
    assert all(len(b) <= size for b in batches)


@given(lengths=st.lists(st.integers(1, 50), max_size=30), most=st.integers(1, 8), fill=st.integers(1, 120))
def test_pieces_are_filled_and_not_more(lengths: list[int], most: int, fill: int) -> None:
    parts = pieces(lengths, most, fill)
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(len(lengths)))
    for number, (start, stop) in enumerate(parts):
        assert stop - start == 1 or (stop - start <= most and (stop - start) * max(lengths[start:stop]) <= fill)
        if number + 1 < len(parts):  # one more would have been too many
            assert stop - start == most or (stop + 1 - start) * max(lengths[start : stop + 1]) > fill
