"""Deep prefix: every layer's keys and values made of the latents, in slots of their own behind BOS.

As in prefix tuning (Li and Liang, arXiv 2101.00190), but made of a text instead of learned once, so that a latent can
tell each layer something else. They stand behind BOS, not before it: BOS must see itself alone to become the place
where an LLM puts the attention that it has no use for.

    slot p of layer l = a key that no query looks for + head(z)         value = head(z)

A softmax over more slots is another softmax even where they are empty, so a new slot's key scores ``quiet`` nats under
a key of zero for a typical query of the LLM (``observed.quiet_keys``), and its value is zero. On SmolLM2-135M 32 new
slots at the default of 6 nats changed the loss of two texts by -0.005 and 0.031 nats a token (keys of zero: 0.35 and
0.17); an LLM whose queries have nothing in common, as one with random weights, changes more.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import Config
from ..llm import LMWrapper
from .base import Exports, Feature
from .key_head import KeyValueHead
from .observed import observe, quiet_keys
from .slots import Slots, latent_counts

STEP = 30.0
"""Nats that one unit of ``level`` stands for: at the learning rate of other new weights it could not wake a slot."""


class DeepPrefix(Feature):
    """Slots of one LLM. With ``groups`` above 1 a layer of group g reads latent ``p * groups + g`` at slot p."""

    kind: ClassVar[str] = "deep_prefix"
    exports: ClassVar[Exports] = "prefix"
    quiet: Tensor

    def __init__(self, config: Config, llm: LMWrapper) -> None:
        super().__init__()
        own, observed = config.deep_prefix, observe(config, llm)
        self.groups = own.groups
        self.register_buffer("quiet", quiet_keys(observed, llm.rotary))
        self.level = nn.Parameter(torch.full((len(observed), 1, 1), own.quiet / STEP))
        self.head = KeyValueHead(config.d_z, own.rank, observed)

    def prefix(self, latents: Tensor) -> Slots:
        counts = latent_counts(latents)
        keys, values = self.head(self._read(latents, counts) if self.groups > 1 else latents)
        rest = (STEP * self.level * self.quiet)[None, :, :, None, :]
        return Slots(keys + rest, values, (counts + self.groups - 1) // self.groups, onto=False)

    def positions(self, latents: int) -> int:
        return -(-latents // self.groups)

    def facts(self) -> dict[str, Any]:
        return {"groups": self.groups}

    def _read(self, latents: Tensor, counts: Tensor) -> Tensor:
        """What each layer reads, f32 [B,L,P,d_z]; a last slot that is not full repeats the last latent."""
        size, depth = latents.shape[1], len(self.level)
        starts = torch.arange((size + self.groups - 1) // self.groups, device=latents.device) * self.groups
        group = torch.arange(depth, device=latents.device) * self.groups // depth
        index = torch.minimum((group[:, None] + starts)[None], (counts - 1).clamp(min=0)[:, None, None])  # [B,L,P]
        picked = latents.gather(1, index.flatten(1)[..., None].expand(-1, -1, latents.shape[2]))
        out: Tensor = picked.unflatten(1, (depth, -1))
        return out
