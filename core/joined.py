"""A second encoder of a published checkpoint, and the checkpoint above it whose adapters it uses.

In: metadata, as training writes and the exporter reads it. Reads no files itself and needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ModelError


def joined_folder(folder: Path, encoder: str) -> Path:
    """Where a published checkpoint keeps a second encoder of this kind."""
    return folder / f"encoder-{encoder}"


def rest_of(folder: Path, meta: Mapping[str, Any], read: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Where the adapters and features lie: in the folder itself, or above a second encoder's.

    Args:
        folder: of the encoder.
        meta: its ``meta.json``.
        read: gives the ``meta.json`` of a checkpoint folder.

    Raises:
        ModelError: 3101 the checkpoint above has other latents or adapters than when the encoder was joined to it; and
            what ``read`` raises.
    """
    if not meta.get("joined"):
        return folder
    above = read(folder.parent)
    # What is said of an adapter names its encoder too.
    if meta["adapters"] != above["adapters"]:
        ids = [each["encoder"]["fingerprint"][:8] for each in (meta, above)]
        raise ModelError(
            3101,
            "the second encoder was joined to another checkpoint",
            where=str(folder),
            expected=f"expected latents {ids[0]} and their adapters, got {ids[1]}",
            fix="join it again: latentwire publish RUN --join CHECKPOINT",
        )
    return folder.parent
