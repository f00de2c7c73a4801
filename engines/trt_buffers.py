"""One batch's memory for TensorRT: cache and outputs on the device, what the runtime reads on the host.

Knows addresses and copies; which graph runs on them is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import LatentError
from .buffers import Buffers
from .manifest import LlmInfo
from .trt_api import Context
from .trt_cache import Copies, DeviceCache, make_cache
from .trt_memory import ALIGNMENT, Block, Device, Recorded

INDICES: Final = (("write_indices", 8), ("kv_lengths", 4), ("last_index", 8), ("position_ids", 8))
"""Index inputs as they lie in one block, and bytes of a number; the one that grows with S comes last."""


@dataclass
class Turn:
    """One of two alternating states of a running batch: which embeddings are read and which are written.

    A recorded CUDA graph holds the addresses of one state and the scratch memory of its context, which must not
    be touched afterwards: each turn has a context of its own.
    """

    context: Context | None = None
    ran: bool = False
    recorded: Recorded | None = None


@dataclass(frozen=True)
class Outputs:
    """Device memory of one step besides the cache, for ``rows`` rows.

    Attributes:
        indices: index inputs, see ``offsets``.
        logits: float32 [rows,V].
        tokens, embeds: next_token int64 [rows] and next_embeds float32 [rows,1,H] of either turn.
        turns: what was prepared for each turn.
    """

    rows: int
    indices: Block
    logits: Block
    tokens: tuple[Block, Block]
    embeds: tuple[Block, Block]
    turns: tuple[Turn, Turn] = field(default_factory=lambda: (Turn(), Turn()))

    def addresses(self, source: Block, target: int) -> dict[str, int]:
        """By graph name, all but the cache: embeddings from ``source`` to those of turn ``target``."""
        return {
            "inputs_embeds": source.address,
            **{name: self.indices.address + at for name, at in offsets(self.rows).items()},
            "logits": self.logits.address,
            "next_token": self.tokens[target].address,
            "next_embeds": self.embeds[target].address,
        }


def offsets(rows: int) -> dict[str, int]:
    """First byte of each index input in its block."""
    found, at = {}, 0
    for name, width in INDICES:
        found[name] = at
        at += -(-rows * width // ALIGNMENT) * ALIGNMENT
    return found


def make_outputs(device: Device, llm: LlmInfo, rows: int, longest: int) -> Outputs:
    """Memory for steps of up to ``longest`` positions. Raises EnvironmentFault 5003."""
    indices = device.alloc(offsets(rows)["position_ids"] + rows * longest * 8)
    embeds = (device.alloc(rows * llm.hidden_size * 4), device.alloc(rows * llm.hidden_size * 4))
    tokens = (device.alloc(rows * 8), device.alloc(rows * 8))
    return Outputs(rows, indices, device.alloc(rows * llm.vocab_size * 4), tokens, embeds)


@dataclass
class TrtBuffers(Buffers):
    """Buffers on a device; ``cache`` and ``memory`` are copied from it when looked up.

    ``next_token`` is right after every step; ``logits`` after a prefill and after steps that were checked;
    ``next_embeds`` stays on the device: use ``feed`` to replace it.

    Attributes:
        held: the cache.
        out: the rest.
        llm: sizes.
        longest: most positions of one step.
        first: row of ``held`` where this batch begins.
        turn: of ``out.embeds``, the one that the next step reads.
        steps: decode calls since the prefill.
        parent: the batch of which this one is a range of rows.
    """

    held: DeviceCache = field(repr=False, kw_only=True)
    out: Outputs = field(repr=False, kw_only=True)
    llm: LlmInfo = field(repr=False, kw_only=True)
    longest: int = field(kw_only=True)
    first: int = field(default=0, kw_only=True)
    turn: int = field(default=0, kw_only=True)
    steps: int = field(default=0, kw_only=True)
    parent: TrtBuffers | None = field(repr=False, default=None, kw_only=True)

    @property
    def device(self) -> Device:
        """Where it lies."""
        return self.held.device

    def address(self, past: str) -> int:
        """First byte of this batch's rows of one cache tensor."""
        return self.held.address(past, self.first)

    def feed(self, embeds: npt.NDArray[np.float32]) -> None:
        """As ``Buffers.feed``."""
        self.next_embeds[...] = embeds
        self._put_embeds(self.next_embeds, 0)

    def rows(self, start: int, stop: int) -> Self:
        """As ``Buffers.rows``: cache and host arrays are shared, the outputs of a step are its own."""
        if not 0 <= start < stop <= self.batch:
            expected = f"expected a range within 0..{self.batch}, got {start}..{stop}"
            raise LatentError(3002, "no such rows", where="buffers", expected=expected)
        part, first = slice(start, stop), self.first + start
        return type(self)(
            batch=stop - start,
            capacity=self.capacity,
            lengths=self.lengths[part],
            next_token=self.next_token[part],
            next_embeds=self.next_embeds[part],
            logits=self.logits[part],
            cache=Copies(tuple(self.held.blocks), lambda name: self.held.read(name, first, stop - start)),
            memory=self.memory,
            held=self.held,
            out=make_outputs(self.device, self.llm, stop - start, self.longest),
            llm=self.llm,
            longest=self.longest,
            first=first,
            parent=self,
        )

    def before_step(self) -> None:
        """A range of rows goes on from the embeddings that lie with the whole batch."""
        if self.parent is not None:
            whole = self.parent
            everyone = np.empty((whole.out.rows, 1, self.llm.hidden_size), np.float32)
            self.device.get(whole.out.embeds[whole.turn], everyone)
            start = self.first - whole.first
            self.next_embeds[...] = everyone[start : start + self.batch]
            self._put_embeds(self.next_embeds, 0)

    def after_step(self) -> None:
        """A range of rows hands its embeddings back to where the whole batch reads them."""
        if self.parent is not None:
            mine = np.empty((self.out.rows, 1, self.llm.hidden_size), np.float32)
            self.device.get(self.out.embeds[self.turn], mine)
            self.next_embeds[...] = mine[: self.batch]
            self.parent._put_embeds(self.next_embeds, self.first - self.parent.first)
            self.parent.after_step()

    def _put_embeds(self, embeds: npt.NDArray[np.float32], row: int) -> None:
        offset = row * self.llm.hidden_size * 4
        self.device.put(self.out.embeds[self.turn], np.ascontiguousarray(embeds, np.float32), offset)

    def check_guards(self) -> None:
        """As ``Buffers.check_guards``."""
        self.held.check_guards()


def alloc_trt(device: Device, llm: LlmInfo, batch: int, rows: int, capacity: int, longest: int) -> TrtBuffers:
    """Memory for ``batch`` rows, ``rows`` of them on the device.

    Raises:
        EnvironmentFault: 5003.
    """
    held = make_cache(device, llm, rows, capacity)
    names = tuple(held.blocks)
    return TrtBuffers(
        batch,
        capacity,
        np.zeros(batch, np.int64),
        np.zeros(batch, np.int64),
        np.zeros((batch, 1, llm.hidden_size), np.float32),
        np.zeros((batch, llm.vocab_size), np.float32),
        Copies(names, lambda name: held.read(name, 0, batch)),
        Copies(names, held.read_all),
        held=held,
        out=make_outputs(device, llm, rows, longest),
        llm=llm,
        longest=longest,
    )


def packed(given: dict[str, npt.NDArray[Any]], rows: int) -> npt.NDArray[np.uint8]:
    """Index inputs of one step as one array of bytes, in the places of ``offsets``.

    Args:
        given: arrays of ``decoder_inputs``, for ``rows`` rows.
        rows: of the device.
    """
    places = offsets(rows)
    raw = np.zeros(places["position_ids"] + given["position_ids"].nbytes, np.uint8)
    for name, at in places.items():
        raw[at : at + given[name].nbytes] = np.ascontiguousarray(given[name]).reshape(-1).view(np.uint8)
    return raw
