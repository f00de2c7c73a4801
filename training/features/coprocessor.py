"""Coprocessor: changes of the keys and values that an LLM computed for the latents, made of the latents themselves.

    K_l(p) + head(z_p), V_l(p) + head(z_p)      once the LLM has read the context, for whatever it reads after it

It works on the cache and nothing else, so the LLM reads the context as before, and what it answers behind the context
takes no further position. Compare Liu and others (arXiv 2412.17747), whose coprocessor reads the cache itself; ours
reads the latents. The gates start at zero: a new one changes nothing.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..config import Config
from ..llm import LMWrapper
from .base import Exports, Feature
from .key_head import KeyValueHead
from .observed import observe
from .slots import Slots, latent_counts


class Coprocessor(Feature):
    """Changes for one LLM, at the positions of its latents."""

    kind: ClassVar[str] = "coprocessor"
    exports: ClassVar[Exports] = "prefix"

    def __init__(self, config: Config, llm: LMWrapper) -> None:
        super().__init__()
        self.head = KeyValueHead(config.d_z, config.coprocessor.rank, observe(config, llm))

    def prefix(self, latents: Tensor) -> Slots:
        keys, values = self.head(latents)
        return Slots(keys, values, latent_counts(latents), onto=True)
