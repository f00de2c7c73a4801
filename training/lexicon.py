"""Lexicon: strings of bytes that have a vector of their own, found in a text inside the graph, without a tokenizer.

A byte encoder would have to learn from examples what each of tens of thousands of words is called in the latents of its
teacher. Here it is told: every string of the lexicon stands beside its key, and a text is cut into strings of the
lexicon, longest first (maximal munch), by whole-number arithmetic on tensors that any engine runs:

    cut       at the start, before white space and digits, and where letters, digits and other bytes meet; one space
              goes with what follows it
    hash      of what lies between the last cut and each byte: h = sum (byte + 1) r^k mod p, by doubling the reach
    look up   h in the sorted hashes of the lexicon, by bisection
    cut again behind the longest string found, and look again; what is left of a word after ``ROUNDS`` has no entry

Word hashes as in the byte latent transformer (arXiv 2412.09871, section 3.2), but exact: two strings of the lexicon
never share a row, and a string that is not in it has none (but for a chance of N / 2^31).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROUNDS: Final = 4
"""Strings that one word may be cut into; the last of so many has to end it."""
REACH: Final = 5
"""Doublings of a hash's reach: strings of up to 2^5 bytes."""
PRIME: Final = 2**31 - 1
BASE: Final = 1_103_515_245
"""Below ``PRIME``, so that a product of two numbers stays below 2^62."""
SPACE, DIGIT, LETTER, OTHER = range(4)
Strings: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""What ``Lexicon`` found: entry, begin, found."""


def byte_kinds(ids: Tensor) -> Tensor:
    """What each byte is, int64 as ``ids``; all bytes beyond ASCII, and the apostrophe, go with letters."""
    small = torch.where((ids >= ord("A")) & (ids <= ord("Z")), ids + 32, ids)
    letter = (ids >= 128) | (ids == ord("'")) | ((small >= ord("a")) & (small <= ord("z")))
    digit = (ids >= ord("0")) & (ids <= ord("9"))
    space = (ids == ord(" ")) | ((ids >= ord("\t")) & (ids <= ord("\r")))
    return torch.where(space, SPACE, torch.where(digit, DIGIT, torch.where(letter, LETTER, OTHER)))


def hash_of(string: bytes) -> int:
    """The hash of one string of at most 2^REACH bytes, as the graph computes it."""
    value = 0
    for byte in string:
        value = (value * BASE + byte + 1) % PRIME
    return value


class Lexicon(nn.Module):
    """Finds strings in texts.

    Args:
        d_z: width of a key.
        size: strings, at most.

    Buffers, saved with the encoder: ``hashes`` int64 [2^n], ascending, at least one more than strings; ``keys`` f32
    [size,d_z], unit rows; ``idf`` f32 [size]. Entries that are not in use have a hash that no string has.
    """

    hashes: Tensor
    keys: Tensor
    idf: Tensor

    def __init__(self, d_z: int, size: int) -> None:
        super().__init__()
        self.depth = size.bit_length()
        self.register_buffer("hashes", torch.full((1 << self.depth,), PRIME))
        self.register_buffer("keys", torch.zeros(size, d_z))
        self.register_buffer("idf", torch.zeros(size))

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Strings:
        """Cut texts into strings.

        Args:
            input_ids: int64 [B,S], bytes.
            lengths: int64 [B].

        Returns:
            entry int64 [B,S], begin int64 [B,S], found bool [B,S]: at the last byte of each string that was found, its
            row of ``keys`` and the byte that it begins at. Elsewhere ``found`` is false, the others in range
            but without meaning.
        """
        size = input_ids.shape[1]
        place = torch.arange(size, device=input_ids.device)[None, :]
        real = place < lengths[:, None]
        cuts = self._words(input_ids) | ~real
        for _ in range(ROUNDS - 1):
            _, known = self._look(input_ids, cuts)
            # Behind the longest string of each word, where the word goes on.
            cuts = cuts | (_right(known, 1) & ~_later(known, cuts))
        entry, known = self._look(input_ids, cuts)
        last = F.pad(cuts, (0, 1), value=True)[:, 1:]
        begin = torch.where(cuts, place, 0)
        for step in (1 << n for n in range(REACH)):
            begin = torch.maximum(begin, _right(begin, step))
        return entry, begin, known & last & real

    def salience(self, entry: Tensor, begin: Tensor, found: Tensor) -> Tensor:
        """f32 [B,S]: at the first byte of each string its inverse document frequency, 0 elsewhere; of ``forward``."""
        value = F.embedding(entry, self.idf[:, None])[..., 0] * found
        # Told at a string's last byte, wanted at its first one: carried to the left, never over a cut.
        cuts = begin == torch.arange(begin.shape[1], device=begin.device)[None, :]
        closed = _left(cuts, 1)
        for step in (1 << n for n in range(REACH)):
            value = torch.maximum(value, torch.where(closed, 0.0, _left(value, step)))
            closed = closed | _left(closed, step)
        return torch.where(cuts, value, 0.0)

    def _words(self, ids: Tensor) -> Tensor:
        """bool [B,S]: whether a word begins at a byte."""
        kind = byte_kinds(ids)
        first = torch.arange(ids.shape[1], device=ids.device)[None, :] == 0
        parted = (kind != _right(kind, 1)) & (_right(ids, 1) != ord(" "))
        return first | (kind == SPACE) | (kind == DIGIT) | parted

    def _look(self, ids: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
        """Of what lies between the last cut and each byte: its row int64 [B,S], and whether it has one, bool [B,S]."""
        value, whole, power = ids + 1, cuts, BASE
        for step in (1 << n for n in range(REACH)):
            value = torch.where(whole, value, (value + _right(value, step) * power) % PRIME)
            whole = whole | _right(whole, step)
            power = power * power % PRIME
        # As an embedding a look-up becomes one node of the graph; as an index it becomes ten.
        value, hashes, row = value[..., None], self.hashes[:, None], torch.zeros_like(value)
        for bit in reversed(range(self.depth)):
            further = row + (1 << bit)
            row = torch.where((F.embedding(further, hashes) <= value)[..., 0], further, row)
        # Not whole: longer than the reach.
        known = (F.embedding(row, hashes) == value)[..., 0] & whole
        return torch.where(known, row, 0), known


def _right(x: Tensor, by: int) -> Tensor:
    """``x`` [B,S] moved to the right; zeros (false) come in."""
    return F.pad(x, (by, 0))[:, : x.shape[1]]


def _left(x: Tensor, by: int) -> Tensor:
    return F.pad(x, (0, by))[:, by:]


def _later(known: Tensor, cuts: Tensor) -> Tensor:
    """bool [B,S]: whether a string ends at a byte or behind it, before the next cut."""
    # A cut closes what lies before it, so the last byte of a word is what reading to the right stops at.
    closed = _left(cuts, 1)
    for step in (1 << n for n in range(REACH)):
        known = known | (_left(known, step) & ~closed)
        closed = closed | _left(closed, step)
    return known


@torch.no_grad()
def start_lexicon(lexicon: Lexicon, strings: Sequence[bytes], keys: Tensor, idf: Tensor) -> int:
    """Fill a lexicon; returns how many strings it holds.

    Args:
        lexicon: to fill.
        strings: by importance; those beyond its size, empty ones, longer ones than its reach and later ones of equal
            hash are left out.
        keys: f32 [N,d_z], of the strings.
        idf: f32 [N], inverse document frequencies.
    """
    chosen: dict[int, int] = {}
    for at, string in enumerate(strings):
        if 0 < len(string) <= 1 << REACH and len(chosen) < len(lexicon.keys):
            chosen.setdefault(hash_of(string), at)
    order = sorted(chosen)
    rows = torch.tensor([chosen[h] for h in order])
    lexicon.hashes.fill_(PRIME)
    lexicon.hashes[: len(order)] = torch.tensor(order)
    lexicon.keys.zero_()[: len(order)] = keys[rows]
    lexicon.idf.zero_()[: len(order)] = idf[rows]
    return len(order)
