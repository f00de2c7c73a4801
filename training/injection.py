"""What is put into an LLM beside tokens, and what is switched on while the LLM reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor

from .features.base import Feature
from .features.slots import Slots


@dataclass(frozen=True)
class Injection:
    """Adapter rows of one batch, and the latents behind them.

    Attributes:
        rows: f32 [B,R,H], what ``row_index`` of a prompt points into: latents, task rows, rows of features.
        latents: f32 [B,M,d_z], empty slots zero; None where no latents stand in the prompt: text, task rows alone.
        features: of the LLM that reads; none where there are no latents.
        front: the rows that stand before the latents in a prompt.
    """

    rows: Tensor
    latents: Tensor | None = None
    features: tuple[Feature, ...] = ()
    front: range = range(0)

    def beside(self, latents: int) -> int:
        """Positions that features take where so many latents stand in a prompt."""
        return len(self.front) + sum(feature.positions(latents) for feature in self.features)

    def slots(self) -> Slots | None:
        """Keys and values for the LLM's cache; None where no feature makes any."""
        made = () if self.latents is None else (feature.prefix(self.latents) for feature in self.features)
        return next((slots for slots in made if slots is not None), None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Every run of the LLM over these rows, and over what it generates behind them, stands inside this."""
        with ExitStack() as stack:
            if self.latents is not None:
                for feature in self.features:
                    stack.enter_context(feature.active(self.latents))
            yield
