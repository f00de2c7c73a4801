"""Options of the features, one table of the config each; a table counts only where ``features`` names its feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...core.errors import ModelError

KINDS: Final = (
    "lora",
    "prefix_tuning",
    "deep_prefix",
    "coprocessor",
    "latent_adapters",
)
"""Names of features, in the order in which they act."""
EXCLUSIVE: Final = ("deep_prefix", "coprocessor")
"""Both make keys and values of the same positions: one or the other."""


PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Matrices of a layer, by the names that all supported LLMs give them."""


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank changes of an LLM's matrices.

    Attributes:
        rank: of each change.
        alpha: a change counts ``alpha / rank``.
        targets: which of ``PROJECTIONS`` change.
        layers: only the first so many layers; 0: all.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = PROJECTIONS
    layers: int = 0

    def __post_init__(self) -> None:
        at_least("lora", "rank", 1, self.rank)
        at_least("lora", "layers", 0, self.layers)
        at_least("lora", "alpha", 1, self.alpha)
        if not self.targets or set(self.targets) - set(PROJECTIONS) or len(set(self.targets)) < len(self.targets):
            raise bad("lora.targets", "some of " + ", ".join(PROJECTIONS), list(self.targets))


@dataclass(frozen=True)
class PrefixTuningOptions:
    """Learned rows of each LLM, in front of the latents.

    Attributes:
        rows: how many.
    """

    rows: int = 8

    def __post_init__(self) -> None:
        at_least("prefix_tuning", "rows", 1, self.rows)


@dataclass(frozen=True)
class DeepPrefixOptions:
    """Keys and values for every layer, made of the latents, in slots of their own.

    Attributes:
        rank: of the map from a latent to the keys and values of all layers.
        groups: layers fall into so many groups, the lowest first, and each reads every so many-th latent, the next
            group the next ones: ``groups`` latents share a slot, which then takes one position for all of them.
        quiet: nats by which a new slot stands behind a key of zero, for a typical query.
    """

    rank: int = 160
    groups: int = 1
    quiet: float = 6.0

    def __post_init__(self) -> None:
        at_least("deep_prefix", "rank", 1, self.rank)
        at_least("deep_prefix", "groups", 1, self.groups)
        if not 0 <= self.quiet <= 30:
            raise bad("deep_prefix.quiet", "0 to 30 nats", self.quiet)


@dataclass(frozen=True)
class CoprocessorOptions:
    """Changes of the keys and values that the LLM computed for the latents.

    Attributes:
        rank: of the map from a latent to the keys and values of all layers.
    """

    rank: int = 160

    def __post_init__(self) -> None:
        at_least("coprocessor", "rank", 1, self.rank)


@dataclass(frozen=True)
class LatentAdaptersOptions:
    """Cross-attention to the latents, in front of some layers.

    Attributes:
        rank: dimensions of queries, keys and values of a layer, in all heads together.
        heads: how many heads share them.
        depths: in front of so many layers, at equal distances.
        layers: numbers of the layers, from 0, in place of ``depths``.
    """

    rank: int = 64
    heads: int = 4
    depths: int = 4
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rank", "heads", "depths"):
            at_least("latent_adapters", name, 1, getattr(self, name))
        if self.rank % self.heads:
            raise bad("latent_adapters.rank", f"a multiple of heads = {self.heads}", self.rank)
        if self.layers != tuple(sorted(set(self.layers))) or min(self.layers, default=0) < 0:
            raise bad("latent_adapters.layers", "numbers from 0, each once, in order", list(self.layers))


def check(features: tuple[str, ...]) -> None:
    """Refuse names that nobody knows, names given twice, and features that exclude each other.

    Raises:
        ModelError: 3210.
    """
    for name in features:
        if name not in KINDS:
            raise bad("features", "some of " + ", ".join(KINDS), name)
    if len(set(features)) < len(features):
        raise bad("features", "each name once", list(features))
    if set(EXCLUSIVE) <= set(features):
        raise bad("features", f"one of {' and '.join(EXCLUSIVE)}, not both", list(features))


def at_least(table: str, name: str, least: int, came: int) -> None:
    """Refuse a number below ``least``; ModelError 3210."""
    if came < least:
        raise bad(f"{table}.{name}", f"at least {least}", came)


def bad(name: str, expected: str, came: object) -> ModelError:
    """The error of an impossible option."""
    return ModelError(3210, f"bad training option {name}", expected=f"expected {expected}, got {came!r}")
