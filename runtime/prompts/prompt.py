"""``LatentPrompt``: positions of one prompt, each a token of the LLM or a row of its embedding space.

Knows no engine, no file and no other runtime. Rows are behind the adapter, in the scale of the target's embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...core.errors import InputError
from ...engines.base import F32, I64
from .target import Target

MAX_POSITIONS: Final = 1 << 17
"""Of one prompt, whatever the LLM says of itself."""

SCALE_RANGE: Final = 16.0
"""Rows may be so many times larger or smaller than the target's embeddings, root mean square over all rows."""

Segment = Sequence[int] | F32
"""Token ids, or rows float32 [n,H]."""


@dataclass(frozen=True)
class LatentPrompt:
    """One prompt, checked when it is made.

    Attributes:
        token_ids: int64 [T]; 0 where a row stands.
        is_token: bool [T].
        latents: float32 [n,H], the rows in the order of their positions; n positions are no token.
        target: the LLM they are meant for.

    Raises:
        InputError: 2140 a token outside the vocabulary or nothing at all; 2141 too many positions; 2144 shapes;
            2145 NaN or infinity; 2147 rows of another scale than the target's embeddings.
    """

    token_ids: I64
    is_token: npt.NDArray[np.bool_]
    latents: F32
    target: Target

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_tokens(self)
        _check_rows(self.latents, self.target)

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def of(cls, segments: Sequence[Segment], target: Target) -> LatentPrompt:
        """Token segments and latent segments in any order. Raises as the class."""
        ids: list[int] = []
        mask: list[bool] = []
        rows = [np.empty((0, target.hidden_size), np.float32)]
        for segment in segments:
            tokens = not isinstance(segment, np.ndarray)
            if isinstance(segment, np.ndarray):
                rows.append(_rows(segment, target))
            ids += [int(i) for i in segment] if tokens else [0] * len(segment)
            mask += [tokens] * len(segment)
        return cls(np.array(ids, np.int64), np.array(mask, bool), np.concatenate(rows), target)

    def check(self, target: Target) -> None:
        """Refuse another LLM than the one the rows were made for.

        Raises:
            InputError: 2146.
        """
        if self.target.fingerprint != target.fingerprint:
            expected = (
                f"expected {target.name} {target.fingerprint[:12]}, "
                f"got {self.target.name} {self.target.fingerprint[:12]}"
            )
            fix = "make the prompt with a bundle of that LLM: frames fit every LLM of their encoder, prompts one"
            raise InputError(2146, "latent prompt for another LLM", expected=expected, fix=fix)


def _rows(segment: F32, target: Target) -> F32:
    if segment.ndim != 2 or segment.shape[1] != target.hidden_size or segment.dtype != np.float32:
        expected = f"expected float32 [n, {target.hidden_size}], got {segment.dtype} {list(segment.shape)}"
        raise InputError(2144, "embeddings of another size", where="latent segment", expected=expected)
    return segment


def _check_shapes(prompt: LatentPrompt) -> None:
    t, n = len(prompt.token_ids), int((~prompt.is_token).sum())
    if not t:
        raise InputError(2140, "an empty prompt", where="latent prompt", expected="expected at least one position")
    most = min(MAX_POSITIONS, prompt.target.max_positions)
    if t > most:
        expected = f"expected at most {most}, got {t}"
        raise InputError(2141, "more positions than the LLM takes", where="latent prompt", expected=expected)
    if prompt.token_ids.shape != prompt.is_token.shape or len(_rows(prompt.latents, prompt.target)) != n:
        expected = f"{t} ids, {len(prompt.is_token)} marks, {n} of them rows, {len(prompt.latents)} rows"
        raise InputError(2144, "positions and rows differ in number", where="latent prompt", expected=expected)


def _check_tokens(prompt: LatentPrompt) -> None:
    ids, v = prompt.token_ids[prompt.is_token], prompt.target.vocab_size
    if len(ids) and (ids.min() < 0 or ids.max() >= v):
        expected = f"expected 0..{v - 1}, got {ids.min()}..{ids.max()}"
        raise InputError(2140, "token id outside the vocabulary", where="latent prompt", expected=expected)


def _check_rows(rows: F32, target: Target) -> None:
    if not np.isfinite(rows).all():
        raise InputError(2145, "NaN or infinity in embeddings", where="latent prompt")
    rms = float(np.sqrt(np.square(rows, dtype=np.float64).mean())) if rows.size else target.scale
    if not target.scale / SCALE_RANGE <= rms <= target.scale * SCALE_RANGE:
        expected = f"expected about {target.scale:.3g} (up to {SCALE_RANGE:g} times more or less), got {rms:.3g}"
        fix = "send what the adapter made, as the first layer receives it"
        raise InputError(2147, "embeddings of another scale", where="latent prompt", expected=expected, fix=fix)
