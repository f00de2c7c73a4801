"""How many latents a text gets: a fixed number, or a share of its length. One checkpoint serves all of them.

    32      M = 32 for every text (a text with fewer tokens gets one latent a token)
    "1/4"   M = ceil(T / 4) for a text of T tokens

Knows nothing of encoders and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ModelError

Choice = int | str
"""A latent count as a config or a command line gives it."""


@dataclass(frozen=True)
class Rule:
    """One latent count. ``number`` is M itself, or r of the ratio 1/r where ``ratio``."""

    number: int
    ratio: bool = False

    def __call__(self, tokens: int) -> int:
        """Latents of a text of ``tokens`` tokens: never more than tokens."""
        return -(-tokens // self.number) if self.ratio else min(self.number, tokens)

    def capacity(self, tokens: Sequence[int]) -> int:
        """Slots of a batch of texts: M where it is fixed, else what its longest text needs; at least 1."""
        return max(1, *(self(t) for t in tokens)) if self.ratio else self.number

    def __str__(self) -> str:
        return f"1/{self.number}" if self.ratio else str(self.number)


def parse(value: Choice) -> Rule:
    """A rule from ``32``, ``"32"`` or ``"1/4"``.

    Raises:
        ModelError: 3210 for anything else.
    """
    top, slash, bottom = str(value).strip().partition("/")
    digits = bottom if slash else top
    if (slash and top != "1") or not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise ModelError(
            3210, "bad number of latents", expected=f"expected a number of at least 1 or a share as 1/4, got {value!r}"
        )
    return Rule(int(digits), bool(slash))


def draw(choices: Sequence[Choice], default: int, seed: Sequence[int]) -> Rule:
    """The rule of one micro-batch, a pure function of ``seed``; ``default`` where there is nothing to choose."""
    if not choices:
        return Rule(default)
    rng: Any = np.random.default_rng(list(seed))
    return parse(choices[int(rng.integers(len(choices)))])
