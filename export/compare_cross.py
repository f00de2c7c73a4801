"""What ``cross`` builds for a bundle against the module it was written after: each time a checkpoint is published.

Needs torch. The module's own weights, as they are stored, on both sides.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ..engines.ort import open_session
from ..engines.tensors import GraphSpec, TensorSpec
from .cross import CrossWeights, build_cross, cross_weights, read_latents
from .graph import Graph, save

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.features.latent_adapters import LatentAdapters

Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def crossed(feature: LatentAdapters, weights: Path, z: Tensor) -> dict[str, Pair]:
    """Run both on latents f32 [B,M,d_z].

    Args:
        feature: with its weights rounded to what is stored.
        weights: its file.
        z: latents; empty slots are zero.

    Returns:
        by name, what the graphs compute and what the module does: keys, values, and each layer's stream.
    """
    import torch

    hidden, depth = feature.query.shape[1], max(feature.layers) + 1
    x = torch.randn(len(z), 5, hidden)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        path = Path(shutil.copy(weights, scratch))
        w = cross_weights(path, feature.facts(), z.shape[2], hidden, depth)
        keys, values, filled = feature.keys_values(z)
        given = _run(build_cross(w), path, {"latents": z.numpy()})
        found: dict[str, Pair] = {
            "keys": (given["cross_k"], keys.permute(1, 0, 2, 4, 3).numpy()),
            "values": (given["cross_v"], values.transpose(0, 1).numpy()),
        }
        for index, layer in enumerate(feature.layers):
            (have,) = _run(_layer(w, layer, hidden), path, {"x": x.numpy(), **given}).values()
            found[f"layer {layer}"] = have, feature.read(index, x, keys[index], values[index], filled).numpy()
    return found


def _layer(w: CrossWeights, layer: int, hidden: int) -> Any:
    """A graph of nothing but what stands in front of a layer."""
    g = Graph("layer")
    g.op("Identity", read_latents(g, w, layer, "x", TensorProto.FLOAT), out="y")
    x, y = (TensorSpec(name, "float32", ("B", "S", hidden)) for name in "xy")
    return g.model(GraphSpec((x, *w.spec.outputs), (y,)))


def _run(model: Any, weights: Path, given: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
    path = weights.with_suffix(".onnx")
    save(model, path)
    names = [o.name for o in model.graph.output]
    # ONNX Runtime wants no input that the graph has not.
    wanted = {i.name for i in model.graph.input}
    found = open_session(path, 0).run(names, {name: array for name, array in given.items() if name in wanted})
    return dict(zip(names, found, strict=True))
