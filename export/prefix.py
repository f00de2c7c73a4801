"""Keys and values that latents put into the cache, in a bundle: one graph, and the engines that can take what it makes.

feature-KIND-LLM.onnx -> BUNDLE/prefix.onnx, which reads KIND.safetensors
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from onnx import TensorProto

from ..core.errors import ModelError
from ..engines.manifest import LlmInfo
from ..engines.prefix import BEFORE, ONTO
from ..engines.specs import DecoderSizes, prefix_spec
from ..engines.tensors import GraphSpec
from .checkpoint import Adapter, Checkpoint, file_stem
from .external import point, read_layout
from .features import feature_name
from .graph import save
from .modules import check_interface, read_model
from .target import Target


def prefix_kind(features: Iterable[str]) -> str:
    """Which of them makes keys and values; empty: none."""
    return next((kind for kind in features if kind in (BEFORE, ONTO)), "")


def check_prefix(features: Iterable[str], target: Target) -> None:
    """Refuse targets whose engines take nothing into their cache from outside.

    Raises:
        ModelError: 3225.
    """
    kind = prefix_kind(features)
    if not kind or not (target.compiled or target.flavour == "gqa"):
        return
    came = f"--target {target.kind}" if target.compiled else f"--flavour {target.flavour}"
    raise ModelError(
        3225,
        f"feature {kind} does not go with this target: its engine's cache takes nothing from outside",
        where=came,
        expected="expected --target onnx, --flavour dual or mask",
        fix="choose another target, or train without it",
    )


def prefix_specs(features: Iterable[str], llm: LlmInfo, d_z: int) -> dict[str, GraphSpec]:
    """For the manifest."""
    return {"prefix": prefix_spec(llm, d_z)} if prefix_kind(features) else {}


def write_prefix(checkpoint: Checkpoint, adapter: Adapter, llm: DecoderSizes, folder: Path) -> None:
    """Place the graph beside its weights, which lie in ``folder`` already; nothing without such a feature.

    Raises:
        BundleError: 4001 a graph with other inputs or outputs; 4008 a weight that the file does not hold.
        ModelError: 3204 the graph is missing: a checkpoint that was never published.
    """
    kind = prefix_kind(adapter.features)
    if not kind:
        return
    source = checkpoint.file(f"feature-{kind}-{file_stem(adapter.llm)}.onnx")
    weights = read_layout(folder / feature_name(kind))
    model = read_model(source)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            point(tensor, weights, tensor.name.partition(".")[2])
    check_interface(model, prefix_spec(llm, checkpoint.encoder.d_z), source)
    save(model, folder / "prefix.onnx")
