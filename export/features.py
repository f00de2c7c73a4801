"""What a checkpoint learned beside encoder and adapter, as files of a bundle.

    checkpoint: feature-KIND-LLM.safetensors -> BUNDLE/KIND.safetensors

Where a feature acts is another module's to build: ``lora`` changes weights, ``modules`` points the adapter's graph at
the rows of prefix tuning.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..core.errors import ModelError
from ..core.files import sha256_file
from .checkpoint import Adapter, Checkpoint, file_stem

EXPORTABLE: Final = ("lora", "prefix_tuning", "deep_prefix", "coprocessor", "latent_adapters")
"""Features that a bundle can hold."""


def feature_name(kind: str) -> str:
    """File name of a feature's weights in a bundle."""
    return f"{kind}.safetensors"


def check_features(adapter: Adapter) -> None:
    """Refuse a checkpoint whose features no bundle can hold: without them it would be another model.

    Raises:
        ModelError: 3225.
    """
    for kind in adapter.features:
        if kind not in EXPORTABLE:
            raise ModelError(
                3225,
                f"feature {kind} cannot be exported",
                where=f"checkpoint, LLM {adapter.llm}",
                expected="expected some of " + ", ".join(EXPORTABLE),
                fix="train without it",
            )


def feature_files(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, Path]:
    """Kind -> checked file of the checkpoint.

    Raises:
        ModelError: 3224 it is missing, or not the one that the checkpoint was saved with.
    """
    found: dict[str, Path] = {}
    for kind, facts in adapter.features.items():
        path = checkpoint.rest / f"feature-{kind}-{file_stem(adapter.llm)}.safetensors"
        if not path.is_file():
            raise ModelError(
                3224, f"feature {kind} of {adapter.llm} has no weights", where=str(path), expected="expected this file"
            )
        if sha256_file(path) != facts.get("sha256"):
            raise ModelError(
                3224,
                f"weights of feature {kind} of {adapter.llm} are damaged, or of another checkpoint",
                where=str(path),
                expected=f"expected SHA-256 {facts.get('sha256')}, got {sha256_file(path)}",
            )
        found[kind] = path
    return found


def write_features(checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> dict[str, Path]:
    """Copy the weights into a bundle under construction; kind -> file there. Raises as ``feature_files``."""
    made: dict[str, Path] = {}
    for kind, path in feature_files(checkpoint, adapter).items():
        made[kind] = Path(shutil.copyfile(path, folder / feature_name(kind)))
    return made


def manifest_features(adapter: Adapter) -> dict[str, Mapping[str, Any]]:
    """What the manifest says of them."""
    return {kind: dict(facts) for kind, facts in adapter.features.items()}
