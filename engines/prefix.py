"""Keys and values that latents put into the cache: read a prompt's head, place them, read the rest.

    before   slots of their own behind BOS: the head is BOS, and what follows moves on
    onto     added to the cache of the latents: the head ends with them

What they are stands in the manifest under the feature's name. Knows arrays and engines, no graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..core.errors import LatentError
from .base import F32, I64, Engine
from .buffers import Buffers
from .manifest import Manifest

BEFORE: Final = "deep_prefix"
ONTO: Final = "coprocessor"


@dataclass(frozen=True)
class PrefixInfo:
    """How a bundle's latents reach the cache.

    Attributes:
        kind: name of the feature.
        groups: latents that share a slot.
    """

    kind: str
    groups: int = 1

    @property
    def onto(self) -> bool:
        """Slots are added to those of the latents."""
        return self.kind == ONTO

    def slots(self, latents: int) -> int:
        """Slots of a row with so many latents."""
        return -(-latents // self.groups)

    def added(self, latents: int) -> int:
        """Positions that they take beside the prompt's own."""
        return 0 if self.onto else self.slots(latents)

    def head(self, manifest: Manifest, latents: int) -> int:
        """Positions of a prompt that are read before the slots are placed: BOS, or all up to the last latent."""
        bos = len(manifest.llm.bos)
        return bos + manifest.front_rows + latents if self.onto else bos


def prefix_info(manifest: Manifest) -> PrefixInfo | None:
    """What the manifest says; None for a bundle without such a feature."""
    for kind in (BEFORE, ONTO):
        if kind in manifest.features:
            return PrefixInfo(kind, int(manifest.features[kind].get("groups", 1)))
    return None


@dataclass(frozen=True)
class Prefix:
    """Slots of a batch, as the part ``prefix`` makes them.

    Attributes:
        keys: float32 [B,L,Hkv,P,D], rotated.
        values: float32 [B,L,Hkv,P,D].
        counts: int64 [B], slots of each row; 0: none.
        heads: int64 [B], positions of the prompt that are read before the slots are placed, less than its length.
        onto: added to the last ``counts`` positions of the head, instead of new slots behind it.
    """

    keys: F32
    values: F32
    counts: I64
    heads: I64
    onto: bool


def latent_prefix(engine: Engine, latents: F32, counts: Sequence[int]) -> Prefix | None:
    """The slots of prompts with latents; None where the bundle makes none.

    Args:
        engine: makes them.
        latents: float32 [B,M,d_z], empty slots zero.
        counts: how many each row has.

    Raises:
        LatentError: 3001, 3002 as ``Engine.prefix``.
    """
    manifest = engine.bundle.manifest
    info = prefix_info(manifest)
    if info is None:
        return None
    slots, heads = ([make(m) for m in counts] for make in (info.slots, lambda m: info.head(manifest, m)))
    return Prefix(*engine.prefix(latents), np.array(slots, np.int64), np.array(heads, np.int64), info.onto)


def prefill_with(engine: Engine, buffers: Buffers, embeds: F32, lengths: I64, prefix: Prefix) -> None:
    """As ``Engine.prefill``, with slots; arguments as there.

    A row needs ``heads + slots`` and the longest rest of the batch together in its cache.

    Raises:
        LatentError: 3001, 3002 as ``Engine.prefill``; 3002 heads that do not fit.
    """
    if (prefix.heads >= lengths).any():
        raise LatentError(
            3002, "nothing is left to read behind the slots", where="heads", expected="expected < lengths"
        )
    if prefix.heads.any():
        engine.prefill(buffers, embeds[:, : int(prefix.heads.max())], prefix.heads)
    else:
        buffers.lengths[:] = 0
    engine.insert(buffers, prefix)
    rest = lengths - prefix.heads
    columns = np.minimum(prefix.heads[:, None] + np.arange(int(rest.max())), embeds.shape[1] - 1)
    engine.extend(buffers, np.take_along_axis(embeds, columns[..., None], axis=1), rest)


def room(prefix: Prefix, lengths: I64) -> int:
    """Cache slots a row that ``prefill_with`` needs: beginnings and rests are padded on the right, each alone."""
    begun = prefix.heads + (0 if prefix.onto else prefix.counts)
    return int(begun.max() + (lengths - prefix.heads).max())


def place(buffers: Buffers, prefix: Prefix) -> None:
    """Write slots into caches that lie in numpy's memory, and count them.

    Raises:
        LatentError: 3002 more slots than the cache or, added, the head has.
    """
    starts = buffers.lengths - prefix.counts if prefix.onto else buffers.lengths
    ends = starts + prefix.counts
    if int(starts.min()) < 0 or int(ends.max()) > buffers.capacity:
        expected = f"expected slots within 0..{buffers.capacity}, got {int(starts.min())}..{int(ends.max())}"
        raise LatentError(3002, "slots do not fit the cache", where="prefix", expected=expected)
    for layer in range(prefix.keys.shape[1]):
        for name, fresh in ((f"past_k.{layer}", prefix.keys), (f"past_v.{layer}", prefix.values)):
            cache: Any = buffers.cache[name]
            for b, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                new = fresh[b, layer, :, : end - start]
                held = cache[b, :, start:end]
                cache[b, :, start:end] = held.astype(np.float32) + new if prefix.onto else new
    if not prefix.onto:
        buffers.lengths += prefix.counts
