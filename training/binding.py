"""Several tokens in one latent: a text is cut into pieces, each gives one token, and a latent names P of them in order.

A latent that names P tokens is ``k(t_1) + b_2 s(k(t_2)) + b_3 s(s(k(t_3))) + ...``, where ``s`` shifts a vector by
``SHIFT`` dimensions, round and round. A shifted key is almost orthogonal to every key that is not, so a reader finds
token p as the key nearest to the latent shifted back p - 1 times: binding by permutation, a vector symbolic
architecture (Plate, Holographic reduced representations, 1995; Gayler, arXiv cs/0412059).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

SHIFT: Final = 97
"""Prime, so that shifts of several places do not meet in any width of practice."""
SHARE: Final = 0.85
"""What each token after the first counts at the start, where the first counts 1."""


def bind(keys: Tensor, place: int) -> Tensor:
    """f32 [...,d_z] as they stand in a latent at ``place``, 0 for the first token."""
    return torch.roll(keys, place * SHIFT % keys.shape[-1], -1) if place else keys


def unbind(latents: Tensor, place: int) -> Tensor:
    """The inverse of ``bind``."""
    return torch.roll(latents, -(place * SHIFT % latents.shape[-1]), -1) if place else latents


class Cut(NamedTuple):
    """How texts of S states (or bytes) are cut.

    Attributes:
        pieces: bool [B,P*M,S], contiguous, in the order of the text; one token of each is named.
        places: P times bool [B,M,P*M]: the piece that a latent names at each place; empty where P is 1.
        spans: bool [B,M,S], what each latent speaks of: its pieces together.
    """

    pieces: Tensor
    places: tuple[Tensor, ...]
    spans: Tensor


def group(pieces: Tensor, lengths: Tensor, slots: Tensor, counts: Tensor | None, places: int) -> Cut:
    """Give each latent up to P pieces in a row, as evenly as can be; with fewer it names its last one again.

    Args:
        pieces: bool [B,P*M,S]; of text b the first ``min(P * counts[b], lengths[b])`` are not empty.
        lengths: int64 [B], states (or bytes) of each text.
        slots: int64 [M], ``arange(M)``.
        counts: int64 [B], latents of each text where they differ; None: M. A text has at most ``lengths``.
        places: P.
    """
    if places == 1:
        return Cut(pieces, (), pieces)
    asked = torch.full_like(lengths, 0) + slots.shape[0] if counts is None else counts
    latents, total = torch.minimum(asked, lengths)[:, None], torch.minimum(places * asked, lengths)[:, None]
    piece = torch.arange(pieces.shape[1], device=pieces.device)[None, :]
    owner = piece * latents // total.clamp(min=1)
    place = piece - (owner * total + latents - 1) // latents.clamp(min=1)
    member = (owner[:, None, :] == slots[None, :, None]) & (piece < total)[:, None, :]
    chosen: list[Tensor] = []
    for number in range(places):
        here = member & (place == number)[:, None, :]
        if chosen:
            here = here | (chosen[-1] & ~here.any(-1, keepdim=True))
        chosen.append(here)
    return Cut(pieces, tuple(chosen), member.float() @ pieces.float() > 0)


def piece_slots(slots: Tensor, places: int) -> Tensor:
    """int64 [P*M], ``arange(P * M)`` from int64 [M], ``arange(M)``, whose length a graph may not know."""
    if places == 1:
        return slots
    return (slots[:, None] * places + torch.arange(places, device=slots.device)).flatten()


class Naming(nn.Module):
    """The lookup path of an encoder: the most salient token of each piece, bound to its place in the latent.

    Args:
        places: P, at least 1. ``share`` f32 [P-1] weighs those after the first; without any there is none.

    Shapes: keys f32 [B,S,d_z] unit rows, weights f32 [B,P*M,S] of each token in its piece -> f32 [B,M,d_z]. One token
    alone has an RMS of 1, so that one step of what is added to it is a small change.
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        if places > 1:
            self.share = nn.Parameter(torch.full((places - 1,), SHARE))

    def forward(self, keys: Tensor, weights: Tensor, cut: Cut) -> Tensor:
        named = weights @ keys
        if cut.places:
            first, *others = (place.to(named.dtype) @ named for place in cut.places)
            named = first
            for place, other in enumerate(others, 1):
                named = named + self.share[place - 1] * bind(other, place)
        return named * math.sqrt(keys.shape[-1])
