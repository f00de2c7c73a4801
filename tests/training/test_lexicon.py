"""The lexicon in the graph against maximal munch in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.training.lexicon import PRIME, REACH, ROUNDS, Lexicon, hash_of, start_lexicon

WORDS = [
    " the",
    "the",
    " bridge",
    " Kow",
    "al",
    "alc",
    "c",
    "zyk",
    " ",
    "1",
    "9",
    "3",
    "2",
    ".",
    "'s",
    "桥",
    "é",
    " (",
    "a",
]
STRINGS = [word.encode() for word in WORDS]
Found = list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return filled(STRINGS)


def filled(strings: list[bytes], size: int = 40) -> Lexicon:
    made = Lexicon(4, size)
    keys = torch.arange(len(strings), dtype=torch.float32)[:, None].expand(-1, 4)
    assert start_lexicon(made, strings, keys, keys[:, 0]) == len(dict.fromkeys(strings))
    return made


def found_in(lexicon: Lexicon, texts: list[bytes], strings: list[bytes] = STRINGS) -> list[Found]:
    """(begin, end, string) of every string found, by the graph."""
    lengths = torch.tensor([len(t) for t in texts])
    # What stands behind a text's end is not read.
    ids = torch.randint(0, 256, (len(texts), max(1, int(lengths.max()))))
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text), dtype=torch.int64)
    entry, begin, known = lexicon(ids, lengths)
    out = []
    for b in range(len(texts)):
        ends = known[b].nonzero()[:, 0].tolist()
        names = [strings[int(lexicon.keys[entry[b, i], 0])].decode() for i in ends]
        out.append([(int(begin[b, i]), i + 1, name) for i, name in zip(ends, names, strict=True)])
    return out


def munched(text: bytes, strings: list[bytes] = STRINGS) -> Found:
    """The same by hand: words, then the longest string at each place, ``ROUNDS`` to a word."""
    kind = [
        "s"
        if b in b" \t\n\r\v\f"
        else "d"
        if b in b"0123456789"
        else "l"
        if b > 127 or chr(b).isalpha() or b == 39
        else "o"
        for b in text
    ]
    edges = [i for i in range(len(text)) if i == 0 or kind[i] in "sd" or (kind[i] != kind[i - 1] and text[i - 1] != 32)]
    out: Found = []
    for at, end in zip(edges, [*edges[1:], len(text)], strict=False):
        for turn in range(ROUNDS):
            fits = [n for n in range(1, min(end - at, 1 << REACH) + 1) if text[at : at + n] in strings]
            # The last one has to end the word.
            if not fits or (turn == ROUNDS - 1 and fits[-1] < end - at):
                break
            out.append((at, at + fits[-1], text[at : at + fits[-1]].decode()))
            at += fits[-1]
    return out


def test_by_hand(lexicon: Lexicon) -> None:
    (found,) = found_in(lexicon, [b"the bridge's 1932 Kowalczyk."])
    assert [name for *_, name in found] == [
        *("the", " bridge", "'s", " ", "1", "9", "3", "2", " Kow", "alc", "zyk", "."),
    ]
    assert [begin for begin, *_ in found] == [0, 3, 10, 12, 13, 14, 15, 16, 17, 21, 24, 27]


def test_a_word_ends_where_nothing_fits(lexicon: Lexicon) -> None:
    assert found_in(lexicon, [b" Kowxal", b"xthe", b"aaaa", b"aaaaa", b""]) == [
        [(0, 4, " Kow")],
        [],
        [(i, i + 1, "a") for i in range(4)],
        [(i, i + 1, "a") for i in range(3)],
        [],
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*STRINGS, b"x", b"  ", b"\n", b"\xff", b"-"]), max_size=14), max_size=4))
def test_as_maximal_munch_whatever_the_neighbours(parts: list[list[bytes]]) -> None:
    lexicon = filled(STRINGS)
    texts = [b"".join(own) for own in parts] or [b""]
    assert found_in(lexicon, texts) == [munched(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*STRINGS, b"x", b"  ", b"\xff", b"-"]), max_size=14), min_size=1, max_size=4))
def test_salience_stands_at_the_first_byte_of_each_string(parts: list[list[bytes]]) -> None:
    lexicon = filled(STRINGS)
    texts = [b"".join(own) for own in parts]
    lengths = torch.tensor([len(t) for t in texts])
    ids = torch.randint(0, 256, (len(texts), max(1, int(lengths.max()))))
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text), dtype=torch.int64)
    found = lexicon.salience(*lexicon(ids, lengths))
    # The inverse document frequency of a string is its number here.
    for row, text in zip(found, texts, strict=True):
        wanted = {begin: float(STRINGS.index(name.encode())) for begin, _, name in munched(text)}
        assert row.tolist() == [wanted.get(at, 0.0) for at in range(len(row))]


def test_what_stands_behind_a_text_is_not_read(lexicon: Lexicon) -> None:
    ids = torch.tensor([list(b"aaaacc"), list(b" alccc"), list(b"the   ")])
    lengths = torch.tensor([4, 3, 3])
    entry, begin, known = lexicon(ids, lengths)
    assert [row.nonzero()[:, 0].tolist() for row in known] == [[0, 1, 2, 3], [0, 2], [2]]
    assert begin[1, 2].item() == 1
    assert STRINGS[int(lexicon.keys[entry[1, 2], 0])] == b"al"


def test_long_strings_up_to_the_reach() -> None:
    strings = [b"a" * 32, b"a" * 31, b"b" * 33, b"b" * 32]
    lexicon = Lexicon(4, 4)
    assert start_lexicon(lexicon, strings, torch.zeros(4, 4), torch.zeros(4)) == 3
    keys = torch.tensor([strings.index(s) for s in sorted([s for s in strings if len(s) < 33], key=hash_of)])
    lexicon.keys.copy_(torch.nn.functional.pad(keys[:, None].expand(-1, 4).float(), (0, 0, 0, 1)))
    assert found_in(lexicon, [b"a" * 32, b"a" * 40, b"b" * 31], strings) == [
        [(0, 32, "a" * 32)],
        [(0, 32, "a" * 32)],
        [],
    ]


def test_full_of_equal_hashes_of_more_than_fit_and_empty() -> None:
    lexicon = Lexicon(4, 3)
    assert start_lexicon(lexicon, [b"a", b"", b"a", b"b", b"c", b"d"], torch.eye(6)[:, :4], torch.arange(6.0)) == 3
    assert lexicon.hashes.tolist() == [*sorted(map(hash_of, (b"a", b"b", b"c"))), PRIME]
    assert sorted(lexicon.idf.tolist()) == [0, 3, 4]
    _, _, known = Lexicon(4, 8)(torch.tensor([[97, 98]]), torch.tensor([2]))
    assert not known.any()
