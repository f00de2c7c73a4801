"""Name of a feature -> its class."""

from __future__ import annotations

from typing import Final

from ..config import Config
from ..llm import LMWrapper
from .base import Feature
from .coprocessor import Coprocessor
from .deep_prefix import DeepPrefix
from .latent_adapters import LatentAdapters
from .lora import Lora
from .options import KINDS
from .prefix_tuning import PrefixTuning

CLASSES: Final = {each.kind: each for each in (Lora, PrefixTuning, DeepPrefix, Coprocessor, LatentAdapters)}


def build(config: Config, llm: LMWrapper) -> dict[str, Feature]:
    """The features that the config names, for one LLM, in the order of ``KINDS``; new ones start without effect."""
    return {kind: CLASSES[kind](config, llm) for kind in KINDS if kind in config.features}
