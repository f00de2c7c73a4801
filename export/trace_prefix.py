"""A feature that puts keys and values into the cache, as one graph beside its weights in a published checkpoint.

    feature-KIND-LLM.onnx    latents f32 [B,M,d_z] -> keys, values f32 [B,L,Hkv,P,D], keys rotated

The runtime's prompt begins with BOS, learned rows if there are any, latents: so the positions are known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from .external import read_layout
from .trace import trace_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..training.features.base import Feature
    from ..training.llm import LMWrapper
    from ..training.model import LatentModel

OUTPUTS: Final = ("keys", "values")


def prefix_feature(model: LatentModel, llm: LMWrapper) -> Feature | None:
    """The feature of an LLM that makes keys and values; there is at most one."""
    return next((f for f in model.features_of(llm).values() if f.exports == "prefix"), None)


def prefix_module(model: LatentModel, llm: LMWrapper, feature: Feature) -> nn.Module:
    """The feature as the runtime sees it: rotated keys, and values, f32 [B,L,Hkv,P,D] each."""
    import torch
    from torch import nn

    before = len(llm.special.bos)

    class _Prefix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleDict({feature.kind: feature})

        def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
            slots = feature.prefix(latents)
            assert slots is not None
            start = before + (model.config.front_rows if slots.onto else 0)
            return llm.rotary(slots.keys, start + torch.arange(slots.keys.shape[3])), slots.values

    return _Prefix()


def trace_prefix(model: LatentModel, llm: LMWrapper, feature: Feature, folder: Path) -> Path:
    """Write the graph into a published checkpoint, which holds the fp16 weights of the same model. Returns its path.

    Raises:
        BundleError: 4001 as ``trace.trace_checkpoint``.
    """
    import torch

    from ..training.checkpoint import feature_file

    weights = folder / feature_file(feature.kind, llm.name)
    # An odd number of latents: with one that the groups divide, the tracer would take the division for exact.
    z = torch.randn(2, model.config.latent_len | 1, model.config.d_z)
    layout = read_layout(weights)
    return trace_module(
        prefix_module(model, llm, feature),
        {"latents": z},
        {"latents": {0: "B", 1: "M"}},
        OUTPUTS,
        layout,
        {},
        weights.with_suffix(".onnx"),
        {feature.kind: layout},
    )
