"""The engine interface: what the runtime may ask of anything that runs a bundle.

Letters: B rows, S tokens of a text, T prompt length, M latents, K task rows, H hidden size, V vocabulary,
C cache capacity. An engine knows arrays only: no text, no frames, no stop rules.

    z = engine.encode(ids, lengths, 32)                 compress side
    codes = engine.quantise(z)                          where the bundle has a quantiser
    rows = engine.adapt(z)                              answer side
    embeds = engine.splice(ids, row_index, rows)
    buffers = engine.alloc(batch, capacity)
    engine.prefill(buffers, embeds, lengths)            buffers.next_token holds token 1
    engine.decode(buffers)                              buffers.next_token holds token 2, and so on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from .buffers import Buffers
from .cross import Cross
from .tensors import GraphSpec

if TYPE_CHECKING:
    from .bundle import Bundle
    from .prefix import Prefix

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

PARTS: Final = ("encoder", "adapter", "splice", "decoder", "quantise", "dequantise", "prefix", "cross")
"""The graphs of a bundle; only one whose encoder was trained with a quantiser has ``quantise`` and ``dequantise``, only
one whose latents also reach the cache has ``prefix``, only one whose decoder reads them in its layers ``cross``. An
engine loads one when it is first used."""


CPU_FILL: Final = 512
"""``Engine.fill`` of processors: what a layer holds of so many positions stays in their caches."""


class Engine(Protocol):
    """Runs the graphs of one bundle. Not safe for two threads at once: that is what ``lanes`` are for."""

    name: str
    """``ort-cpu``, ``ort-cuda``, ``trt``, ``trt-rtx``, ``torch-ref``, ``toy``."""

    bundle: Bundle

    max_batch: int
    """Most rows of a call; 0: as many as memory holds. A compiled plan has a limit."""

    max_prompt: int
    """Most positions of a prompt; 0: as many as the cache holds."""

    fill: int
    """Positions (rows times the longest) that fill a call of encoder or prefill: more in one call are no faster, padded
    further and hold more memory. 0: the more the better."""

    def lanes(self) -> Sequence[Engine]:
        """Engines with the same bundle that share out this one's processors: each for a thread of its own, at the same
        time as the others and while this one rests. Empty: one call at a time serves this engine best.
        """
        ...

    def io_spec(self) -> Mapping[str, GraphSpec]:
        """Inputs and outputs of every graph, by part."""
        ...

    def aliases(self) -> Mapping[str, str]:
        """Decoder outputs that live in the memory of an input: ``{"present_k.0": "past_k.0", ...}``."""
        ...

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        """Text ids to latents.

        Args:
            input_ids: int64 [B,S], encoder tokens, right padded with any id.
            lengths: int64 [B], true tokens of each row, 1..S.
            latents: M, at most the bundle's window.

        Returns:
            float32 [B,M,d_z]. Row b has at least one and at most ``min(M, lengths[b])`` latents; the rest is zero.

        Raises:
            LatentError: 3001 NaN or infinity; 3002 shape, dtype or length out of range.
        """
        ...

    def quantise(self, latents: F32) -> I64:
        """Latents float32 [B,M,d_z] to codes int64 [B,M,D], each latent alone. Raises as ``encode``.

        Raises:
            BundleError: 4008 the bundle has no quantiser.
        """
        ...

    def dequantise(self, codes: I64) -> F32:
        """Codes int64 [B,M,D] to latents float32 [B,M,d_z]. Raises as ``quantise``."""
        ...

    def adapt(self, latents: F32) -> F32:
        """Latents float32 [B,M,d_z] to rows float32 [B,M+K,H]: K task rows last. Raises as ``encode``."""
        ...

    def prefix(self, latents: F32) -> tuple[F32, F32]:
        """Latents float32 [B,M,d_z] to rotated keys and values float32 [B,L,Hkv,P,D]. Raises as ``encode``.

        Raises:
            BundleError: 4008 the bundle has no such part.
        """
        ...

    def cross(self, latents: F32) -> Cross:
        """Latents float32 [B,M,d_z] to what the decoder's layers read of them, for ``Buffers.cross``. Raises as
        ``prefix``; a slot without a latent is all zero.
        """
        ...

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """Token embeddings with adapter rows in their places.

        Args:
            input_ids: int64 [B,T], LLM tokens; ignored where a row stands.
            row_index: int64 [B,T], row of ``rows[b]``, or -1 for a token.
            rows: float32 [B,R,H].

        Returns:
            float32 [B,T,H], ready for ``prefill``.

        Raises:
            LatentError: 3002 shape, dtype, or an id or row outside its table.
        """
        ...

    def alloc(self, batch: int, capacity: int) -> Buffers:
        """Memory for ``batch`` rows of ``capacity`` cache slots.

        Raises:
            LatentError: 3002 batch or capacity outside the bundle's limits.
            EnvironmentFault: 5003 not enough memory.
        """
        ...

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """Read whole prompts into an empty cache.

        Args:
            buffers: from ``alloc`` of this engine; earlier content is forgotten.
            inputs_embeds: float32 [B,T,H], right padded with anything finite; T <= C.
            lengths: int64 [B], true positions of each row, 1..T.

        Raises:
            LatentError: 3001 NaN or infinite logits; 3002 shapes or capacity.
        """
        ...

    def extend(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``prefill``, behind what each row's cache holds: ``buffers.lengths + T <= C``.

        Raises:
            EnvironmentFault: 5001 an engine that cannot.
        """
        ...

    def insert(self, buffers: Buffers, prefix: Prefix) -> None:
        """Place slots in the cache; see ``prefix.place``. Raises as ``extend``.

        Raises:
            LatentError: 3002 they do not fit.
        """
        ...

    def decode(self, buffers: Buffers) -> None:
        """One more token for all rows: reads ``next_token``, writes its cache slot, sets the next one.

        Raises:
            LatentError: 3001 NaN or infinite logits; 3002 a row's cache is full.
        """
        ...

    def close(self) -> None:
        """Free everything. Later calls are undefined."""
        ...
