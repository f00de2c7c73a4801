"""Names of the forms that ``jobs export`` writes; imports nothing, as the command line needs them."""

from __future__ import annotations

from typing import Literal

ExportForm = Literal["frames", "jsonl", "npy", "safetensors", "hf"]
