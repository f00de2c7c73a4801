"""The feature ``latent_adapters`` of a checkpoint on its way into a bundle; what is made of it: ``cross``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..engines.tensors import GraphSpec
from .checkpoint import Adapter, Checkpoint
from .cross import KIND, CrossWeights, cross_weights
from .features import feature_files, feature_name
from .graph import read_spec
from .modules import read_model
from .target import Target


@dataclass(frozen=True)
class CrossSource:
    """The feature in a checkpoint: its file, what the checkpoint says of it, and d_z of the encoder."""

    path: Path
    facts: Mapping[str, Any]
    d_z: int

    def place(self, folder: Path, hidden: int, depth: int) -> CrossWeights:
        """Copy the weights into a bundle under construction; arguments and errors as ``cross_weights``."""
        placed = Path(shutil.copyfile(self.path, folder / feature_name(KIND)))
        return cross_weights(placed, self.facts, self.d_z, hidden, depth)


def cross_source(checkpoint: Checkpoint, adapter: Adapter) -> CrossSource | None:
    """What an LLM's layers read latents with; None where they do not. ModelError 3224 as ``feature_files``."""
    files = feature_files(checkpoint, adapter)
    if KIND not in files:
        return None
    return CrossSource(files[KIND], adapter.features[KIND], checkpoint.encoder.d_z)


def check_cross(features: Iterable[str], target: Target) -> None:
    """Refuse targets whose engines give a decoder nothing but the prompt and its cache.

    Raises:
        ModelError: 3225.
    """
    if KIND in features and target.compiled:
        raise ModelError(
            3225,
            f"feature {KIND} does not go with this target: its layers read no latents",
            where=f"--target {target.kind}",
            expected="expected --target onnx",
            fix="choose another target, or train without it",
        )


def placed_spec(folder: Path) -> GraphSpec | None:
    """Of the part ``cross`` in a folder; None where there is none."""
    path = folder / "cross.onnx"
    return read_spec(read_model(path)) if path.is_file() else None
