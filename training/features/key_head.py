"""Latents to keys and values of every layer, through one low-rank map: what deep prefix and coprocessor share.

h = A z                        A: f32 [rank,d_z], shared
K_l = g_l s_l B_l h            B: f32 [rank,kv_heads*D] for each layer; s_l: size of the LLM's own keys
V_l the same with others       g_l: gate, which starts at zero
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .observed import Observed


class KeyValueHead(nn.Module):
    """The map: f32 [B,P,d_z] of each layer, or of all -> keys and values f32 [B,L,kv_heads,P,D].

    Args:
        d_z: width of a latent.
        rank: of the map.
        observed: the LLM's own layers: their number, sizes, and the size of their keys and values.

    A new one gives zeros. With gates at one it gives keys and values about as large as the LLM's own.
    """

    def __init__(self, d_z: int, rank: int, observed: list[Observed]) -> None:
        super().__init__()
        self.heads, self.head_dim = observed[0].keys.shape[1:]
        self.down = nn.Linear(d_z, rank, bias=False)
        nn.init.normal_(self.down.weight, std=d_z**-0.5)
        for name in ("keys", "values"):
            sizes = torch.stack([getattr(layer, name).square().mean().sqrt() for layer in observed])
            noise = torch.randn(len(observed), rank, self.heads * self.head_dim)
            setattr(self, name, nn.Parameter(noise * rank**-0.5 * sizes[:, None, None]))
        self.gate = nn.Parameter(torch.zeros(2, len(observed)))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Of latents f32 [B,P,d_z] that all layers read, or f32 [B,L,P,d_z]."""
        h = self.down(latents)
        if latents.dim() == 3:
            h = h[:, None]
        keys, values = (
            (h @ matrix).unflatten(-1, (self.heads, self.head_dim)).transpose(2, 3) * gate[None, :, None, None, None]
            for matrix, gate in zip((self.keys, self.values), self.gate, strict=True)
        )
        return keys, values
