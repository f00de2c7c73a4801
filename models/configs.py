"""The configuration of a model that need not be here: what planning takes, and no weights.

In: a name. Out: the content of its ``config.json``.
Errors: ModelError 3201 (no such model), 3203 (family not supported), 3204 (no ``config.json``); EnvironmentFault
5010 (no network).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .catalogue import CATALOGUE
from .folder import CONFIG, read_config
from .hub import fetch_from_hub
from .store import HUB_PREFIX, folder_of


def model_config(name: str) -> dict[str, Any]:
    """``config.json`` of a catalogue name that was added, a folder, a ``config.json`` itself, or ``hf:org/name``."""
    if name.startswith(HUB_PREFIX):
        return read_config(fetch_from_hub(name.removeprefix(HUB_PREFIX), wanted=[CONFIG]))
    path = folder_of(name) if name in CATALOGUE else Path(name).expanduser()
    return read_config(path.parent if path.name == CONFIG else path)
