"""TensorRT, native or RTX: compiled plans on an NVIDIA GPU.

Two contexts over one decoder plan, prefill and single steps. Keys and values are updated in place: each ``present``
output has the address of its ``past`` input. The next token's embedding never leaves the device. Parts without a
plan run on ONNX Runtime.

    prefill   embeds of the host -> embeds[0]
    decode 1  embeds[0] -> embeds[1]      decode 2  embeds[1] -> embeds[0]     and so on

With ``graphs`` each of the two directions is recorded once as a CUDA graph and replayed, for as long as the
buffers live; batches are rounded up to BUCKETS so that few are needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import BundleError, LatentError
from .base import F32, I64, PARTS
from .buffers import Buffers, decoder_inputs
from .bundle import Bundle
from .checks import check_decode, check_prefill, finite, fitted_capacity
from .ort_parts import OrtParts
from .tensors import check_all
from .trt_api import Context, CudaEngine, TensorRt
from .trt_buffers import TrtBuffers, alloc_trt, packed
from .trt_memory import Block, Device, open_device
from .trt_module import load
from .trt_plan import DECODE, PREFILL, failure, open_plan

BUCKETS: Final = (1, 8, 32, 64, 128, 256)
"""Batch sizes that CUDA graphs are recorded for; larger ones are multiples of the last."""
CHECK_EVERY: Final = 16
"""Decode steps between two looks at the logits."""


class TrtEngine(OrtParts):
    """See ``base.Engine``.

    NaN and infinity are looked for in the logits of a prefill, of every CHECK_EVERY-th step and of each step in
    which a row ends; other logits stay on the device.

    Args:
        bundle: verified bundle with plans.
        device: GPU; None: the first one.
        trt: module that loads the plans; None: the installed package that the plans name.
        graphs: record decode steps as CUDA graphs.
        check_every: see above; 1 also brings every step's logits to the host.
        threads: of the parts that run on ONNX Runtime.
        parts: graphs that may be used.

    Raises:
        BundleError: 4008 the bundle has no decoder plan.
        EnvironmentFault: 5001 no GPU; 5011 TensorRT is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device | None = None,
        trt: TensorRt | None = None,
        graphs: bool = True,
        check_every: int = CHECK_EVERY,
        threads: int | None = None,
        parts: Collection[str] = PARTS,
    ) -> None:
        super().__init__(bundle, threads=threads, parts=parts)
        plans = bundle.manifest.plans
        if "decoder" not in plans:
            raise BundleError(
                4008,
                "bundle has no plan of its decoder",
                where=str(bundle.path),
                expected=f"plans: {', '.join(sorted(plans)) or 'none'}",
                fix="export with --target tensorrt or tensorrt-rtx",
            )
        package = plans["decoder"].package
        self.name = "trt-rtx" if package == "tensorrt-rtx" else "trt"
        self.max_batch = min(plan.batch for plan in plans.values())
        self.max_prompt = plans["decoder"].length
        self._trt = trt or load(package)
        self._device = device or open_device()
        self._graphs = graphs
        self._check_every = check_every
        self._engines: dict[str, CudaEngine] = {}
        self._contexts: dict[tuple[str, int], Context] = {}
        self._pool: dict[str, Block] = {}

    def alloc(self, batch: int, capacity: int) -> TrtBuffers:
        """As ``base.Engine.alloc``; raises LatentError 3002 also for a batch that the plan is not made for."""
        slots, plan = fitted_capacity(batch, capacity, self.bundle.manifest), self.bundle.manifest.plans["decoder"]
        if batch > plan.batch:
            raise LatentError(
                3002,
                "batch outside the plan's range",
                where=f"batch {batch}",
                expected=f"expected at most {plan.batch}",
                fix="a smaller --batch-size, or export with a larger --batch",
            )
        rows = min(bucket(batch), plan.batch) if self._graphs else batch
        return alloc_trt(self._device, self.bundle.manifest.llm, batch, rows, slots, plan.length)

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.prefill``; raises LatentError 3002 also for prompts longer than the plan takes."""
        check_prefill(buffers.batch, buffers.capacity, inputs_embeds, lengths, self.bundle.manifest.llm.hidden_size)
        b, new = _own(buffers), inputs_embeds.shape[1]
        if new > b.longest:
            raise LatentError(
                3002,
                "prompts longer than the plan's range",
                where="tensor inputs_embeds",
                expected=f"expected at most {b.longest} positions, got {new}",
                fix="shorter prompts, or export with a larger --length",
            )
        b.lengths[:] = 0
        b.steps = b.turn = 0
        rows = b.out.rows
        prompt = np.zeros((rows, new, inputs_embeds.shape[2]), np.float32)
        prompt[: b.batch] = inputs_embeds
        self._put_indices(b, prompt, lengths)
        source = self._grown("prompt", prompt.nbytes)
        self._device.put(source, prompt)
        context = self._context("decoder", PREFILL)
        self._bind(context, b, source, 0, new)
        self._execute(context, "decoder")
        self._finish(b, lengths, check=True)

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``."""
        check_decode(buffers.lengths, buffers.capacity)
        b = _own(buffers)
        b.before_step()
        # Only shapes count here: the embeddings are on the device already.
        one = np.empty((b.out.rows, 1, 0), np.float32)
        self._put_indices(b, one, np.ones(b.batch, np.int64))
        self._step(b)
        b.turn, b.steps = 1 - b.turn, b.steps + 1
        self._finish(b, np.ones(b.batch, np.int64), check=b.steps % self._check_every == 0)

    def close(self) -> None:
        """As ``base.Engine.close``."""
        super().close()
        for held in (self._contexts, self._engines, self._pool):
            held.clear()

    def _step(self, b: TrtBuffers) -> None:
        """One position for every row, eagerly or from a recording."""
        turn = b.out.turns[b.turn]
        if turn.recorded is not None:
            turn.recorded.launch()
            return
        record = self._graphs and b.parent is None  # a range of rows lives for a step or two
        if turn.context is None:
            turn.context = self._make_context("decoder", DECODE) if record else self._context("decoder", DECODE)
        context = turn.context
        if not (record and turn.ran):
            self._bind(context, b, b.out.embeds[b.turn], 1 - b.turn, 1)
            self._execute(context, "decoder")
            turn.ran = True
            return
        if not _recordable(context, self._device.stream):
            self._execute(context, "decoder")
            return
        # The first run after a change of shape prepared things that must not be recorded.
        turn.recorded = self._device.record(lambda: self._execute(context, "decoder"))
        turn.recorded.launch()

    def _put_indices(self, b: TrtBuffers, embeds: F32, lengths: I64) -> None:
        """Index inputs of one step. Rows of the device beyond the batch hold one token each, over and over."""
        spare = b.out.rows - b.batch
        written = np.concatenate([b.lengths, np.zeros(spare, np.int64)])
        new = np.concatenate([lengths, np.ones(spare, np.int64)])
        self._device.put(b.out.indices, packed(decoder_inputs(written, embeds, new), b.out.rows))

    def _bind(self, context: Context, b: TrtBuffers, source: Block, target: int, new: int) -> None:
        """Shapes and addresses of one step: S = ``new``, embeddings from ``source`` to those of turn ``target``."""
        llm, rows, out = self.bundle.manifest.llm, b.out.rows, b.out
        cache = (rows, llm.num_kv_heads, b.capacity, llm.head_dim)
        shapes: dict[str, tuple[int, ...]] = {
            "inputs_embeds": (rows, new, llm.hidden_size),
            "position_ids": (rows, new),
            **dict.fromkeys(("write_indices", "kv_lengths", "last_index"), (rows,)),
            **dict.fromkeys(b.held.blocks, cache),
        }
        self._shape(context, shapes, "decoder")
        self._point(context, out.addresses(source, target))
        self._point(context, {past: b.address(past) for past in b.held.blocks})
        self._point(context, {present: b.address(past) for present, past in self.aliases().items()})

    def _finish(self, b: TrtBuffers, lengths: I64, *, check: bool) -> None:
        """Bring tokens to the host, count the new positions, look at the logits where it is time to."""
        tokens = np.empty(b.out.rows, np.int64)
        self._device.get(b.out.tokens[b.turn], tokens)
        b.next_token[:] = tokens[: b.batch]
        b.lengths += lengths
        b.after_step()
        if check or np.isin(b.next_token, self.bundle.manifest.llm.eos).any():
            self._device.get(b.out.logits, b.logits)
            finite(b.logits, "logits", self.name)

    def _run(self, part: str, given: Mapping[str, npt.NDArray[Any]], what: str) -> F32:
        """As ``OrtParts._run``, for parts that have a plan."""
        if part not in self.bundle.manifest.plans:
            return super()._run(part, given, what)
        self.require(part)
        spec = self.io_spec()[part]
        check_all(given, spec.inputs)
        context, name = self._context(part, PREFILL), spec.outputs[0].name
        self._shape(context, {n: a.shape for n, a in given.items()}, part)
        for n, array in given.items():
            block = self._grown(f"{part}.{n}", array.nbytes)
            self._device.put(block, np.ascontiguousarray(array))
            self._point(context, {n: block.address})
        found = np.empty(tuple(context.get_tensor_shape(name)), np.float32)
        block = self._grown(f"{part}.{name}", found.nbytes)
        self._point(context, {name: block.address})
        self._execute(context, part)
        self._device.get(block, found)
        finite(found, what, self.name)
        return found

    def _shape(self, context: Context, shapes: Mapping[str, tuple[int, ...]], part: str) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                plan = self.bundle.manifest.plans[part]
                raise LatentError(
                    3002,
                    "sizes outside the plan's range",
                    where=f"{part}, tensor {name}",
                    expected=f"expected a batch up to {plan.batch} and a length up to {plan.length}, got {list(shape)}",
                    fix="a smaller batch or shorter texts, or export with larger --batch and --length",
                )
        if missing := context.infer_shapes():
            raise BundleError(4012, "the plan wants more than its graph", where=part, expected=", ".join(missing))

    def _point(self, context: Context, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BundleError(4012, "the plan has no such tensor", where=name, fix="export again")

    def _execute(self, context: Context, part: str) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise failure(self._trt, part)

    def _context(self, part: str, profile: int) -> Context:
        """The context of a part that nothing is recorded of."""
        key = (part, profile)
        if key not in self._contexts:
            self._contexts[key] = self._make_context(part, profile)
        return self._contexts[key]

    def _make_context(self, part: str, profile: int) -> Context:
        self.require(part)
        if part not in self._engines:
            self._engines[part] = open_plan(self.bundle, part, self._trt, self._device)
        # Scratch memory for the sizes of this profile, not of the largest one.
        strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engines[part].create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise failure(self._trt, f"{part}, profile {profile}")
        self._device.wait()
        return context

    def _grown(self, key: str, nbytes: int) -> Block:
        """A block that is kept for its purpose and replaced when it is too small."""
        held = self._pool.get(key)
        if held is None or held.nbytes < nbytes:
            self._pool.pop(key, None)
            self._pool[key] = held = self._device.alloc(max(nbytes, 1))
        return held


def _recordable(context: Context, stream: int) -> bool:
    """TensorRT-RTX compiles kernels for new shapes while it runs, and says when it is done with that."""
    asked = getattr(context, "is_stream_capturable", None)
    return asked is None or bool(asked(stream))


def bucket(batch: int) -> int:
    """Rows to run for a batch: the next of BUCKETS, or the next multiple of the last."""
    top = BUCKETS[-1]
    return next((size for size in BUCKETS if size >= batch), -(-batch // top) * top)


def _own(buffers: Buffers) -> TrtBuffers:
    if not isinstance(buffers, TrtBuffers):
        raise TypeError("buffers of another engine")
    return buffers
