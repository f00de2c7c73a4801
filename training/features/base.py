"""What a feature is: trainable parts beside one frozen LLM, at work only where latents stand in its prompt.

A feature may act in three places, and by default acts in none:

    rows     the adapter's rows, before they are put between the tokens   (prefix tuning)
    prefix   keys and values in the LLM's cache                           (deep prefix, coprocessor)
    active   the LLM itself, while it reads and while it answers          (LoRA, latent adapters)

It starts so that the LLM computes what it computes without it, or nearly so (each module says how near), but receives
a gradient from the first step on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .slots import Slots

Exports = Literal["weights", "rows", "prefix", "cross"]
"""Where an exported bundle holds a feature: in the decoder's weights, in the adapter's rows, or in an optional part."""


class Feature(nn.Module):
    """One feature of one LLM. Subclasses take ``(config, llm)`` and hold their own parameters alone: what they reach
    of the LLM must not appear in ``state_dict``.

    Attributes:
        kind: its name in the config.
        exports: how a bundle holds it.
    """

    kind: ClassVar[str]
    exports: ClassVar[Exports]

    def rows(self, rows: Tensor, latents: Tensor) -> Tensor:
        """Rows f32 [B,R,H] of latents f32 [B,M,d_z], whose empty slots are zero -> rows f32 [B,R',H].

        R' >= R: what is added comes last, so that the indices of the others stay.
        """
        return rows

    def prefix(self, latents: Tensor) -> Slots | None:
        """Keys and values for every layer, of latents f32 [B,M,d_z]; None: nothing is put into the cache."""
        return None

    def positions(self, latents: int) -> int:
        """Positions of the LLM that it takes, beside rows, where so many latents stand in a prompt."""
        return 0

    def facts(self) -> dict[str, Any]:
        """What whoever runs a checkpoint must know of it, beside its weights; plain values."""
        return {}

    @contextmanager
    def active(self, latents: Tensor) -> Iterator[None]:
        """While this is open the LLM reads prompts with these latents; behind it the LLM is as it was."""
        yield
