"""Rotary positions of one LLM's keys, as its own attention turns them: for keys that the LLM did not make."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor


class Rotary:
    """Rotations of all layers.

    Args:
        model: a Hugging Face causal LM; Gemma turns sliding layers by other angles than full ones.

    Attributes:
        frequencies: f32 [R,D/2], radians a position, of each kind of rotation.
        layers: int64 [L], kind of each layer.
    """

    def __init__(self, model: Any) -> None:
        made, config = model.model.rotary_emb, model.config
        depth = int(config.num_hidden_layers)
        if hasattr(made, "inv_freq"):
            kinds, of_layer = ["inv_freq"], [0] * depth
            self._scales = [float(made.attention_scaling)]
        else:
            names = sorted(set(config.layer_types))
            kinds, of_layer = [f"{name}_inv_freq" for name in names], [names.index(t) for t in config.layer_types]
            self._scales = [float(getattr(made, f"{name}_attention_scaling")) for name in names]
        self.frequencies = torch.stack([getattr(made, kind).detach().float().cpu() for kind in kinds])
        self.layers = torch.tensor(of_layer)

    def __call__(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Turn keys f32 [B,L,heads,P,D] to int64 positions, [B,P] or [P] for all rows; same shape."""
        cos, sin = self._tables(positions, keys.device)
        half = keys.shape[-1] // 2
        turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
        return keys * cos + turned * sin

    def one(self, layer: int) -> Rotary:
        """The rotation of a single layer, as of an LLM that has no other."""
        alone = copy(self)
        alone.layers = self.layers[layer : layer + 1]
        return alone

    def _tables(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine, f32 [B or 1,L,1,P,D] each."""
        places = positions.reshape(-1, positions.shape[-1]).float()
        angles = places[:, None, :, None] * self.frequencies.to(device)[None, :, None, :]  # [B,R,P,D/2]
        scale = torch.tensor(self._scales, device=device)[None, :, None, None]
        angles, layers = torch.cat([angles, angles], dim=-1), self.layers.to(device)
        cos, sin = ((x * scale).index_select(1, layers)[:, :, None] for x in (angles.cos(), angles.sin()))
        return cos, sin
