"""How fast a run is: samples and tokens a second, and the share of what the device can do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .adapter import LearnedAdapter, TableAdapter
from .encoder_bytes import ByteLevelEncoder
from .llm import LMWrapper
from .maker import Work
from .model import LatentModel
from .tree import Tree


@dataclass(frozen=True)
class _Costs:
    """Multiply-adds of one LLM or encoder: ``weights`` a position, ``attention`` a pair of positions of one row."""

    weights: int
    attention: int

    @classmethod
    def of(cls, layers: nn.Module, config: object) -> _Costs:
        """From a stack of transformer layers and its transformers config."""
        size = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
        count = sum(1 for _ in layers.children())
        heads = int(getattr(config, "num_attention_heads", 1))
        width = int(getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads)
        return cls(size, 2 * count * heads * width)

    def __call__(self, rows: int, length: int) -> int:
        """Multiply-adds of a forward pass over padded rows."""
        return rows * length * (self.weights + self.attention * length)


class Flops:
    """Floating point operations of micro-batches, counted from shapes; padding is counted, as the device computes it.

    A multiply-add is two operations. Forward and backward of trained weights are three times the forward pass; a
    frozen LLM between loss and latents is twice, for its weights get no gradient; a teacher is once.
    Norms, activations and softmax are left out.
    """

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        layers = getattr(model.encoder, "layers", None)
        trained = layers if isinstance(layers, nn.Module) else model.encoder
        own = model.encoder.config if isinstance(model.encoder, ByteLevelEncoder) else model.source.model.config
        self.encoder, self.stride = _Costs.of(trained, own), model.config.stride
        self.llms = [_Costs.of(llm.model.model.layers, llm.model.config) for llm in model.llms]

    def __call__(self, work: Work, llms: Sequence[int]) -> int:
        """Operations of one micro-batch, forward and backward, for the LLMs of these numbers."""
        rows, length = work.batch.input_ids.shape
        slots = rows * work.batch.slots.shape[0]
        total = 3 * self.encoder(rows, -(-length // self.stride))
        # Where latents alone are learned there are no trees.
        for number in llms if work.batch.trees else ():
            llm, cost = self.model.llms[number], self.llms[number]
            total += 2 * _tree(work.batch.trees[number], cost, llm) + self._adapter(llm, slots)
            if work.teachers:
                total += _tree(work.teachers[number], cost, llm)
        return 2 * total

    def _adapter(self, llm: LMWrapper, slots: int) -> int:
        adapter = self.model.adapter(llm)
        if not isinstance(adapter, LearnedAdapter):
            return 3 * slots * sum(p.numel() for p in adapter.parameters() if p.ndim == 2)
        width, d_z = adapter.llm_embedding.shape[1], adapter.up.in_features
        # A stored table has no keys to compute, but turns the query.
        key, turn = (0, d_z * d_z) if isinstance(adapter, TableAdapter) else (width * d_z, 0)
        # All keys and all scores once, without gradient; keys of the winners again, with it.
        named = slots * max(1, len(adapter.places))
        lookup = adapter.size * (key + named * d_z) + 3 * named * (adapter.top * key + turn)
        behind = (adapter.up, adapter.down, adapter.places, adapter.reads)
        matrices = sum(p.numel() for module in behind for p in module.parameters() if p.ndim == 2)
        return lookup + 3 * slots * matrices


def _tree(tree: Tree, cost: _Costs, llm: LMWrapper) -> int:
    head: torch.Tensor = llm.model.get_output_embeddings().weight
    return cost(*tree.ids.shape) + len(tree.scored) * head.numel()


class Meter:
    """Figures of the steps since it was asked last.

    Args:
        flops: counts operations.
        peak: operations a second that the device reaches; see ``measure_peak``.
    """

    def __init__(self, flops: Flops, peak: float) -> None:
        self.flops, self.peak = flops, peak
        self.samples = self.tokens = self.operations = 0
        self.began = time.perf_counter()

    def add(self, work: Work, llms: Sequence[int]) -> None:
        """One micro-batch of this process is done, for the LLMs of these numbers."""
        trees = [each[number] for each in (work.batch.trees, work.teachers) if each for number in llms]
        self.samples += work.batch.input_ids.shape[0]
        self.tokens += work.tokens + sum(tree.ids.numel() for tree in trees)
        self.operations += self.flops(work, llms)

    def take(self, processes: int = 1) -> dict[str, float]:
        """``samples_s`` contexts and ``tokens_s`` positions of encoder and LLMs a second over all processes,
        ``tflops`` of one device, ``peak_share`` of what its matrix products reach."""
        now = time.perf_counter()
        seconds = max(now - self.began, 1e-9)
        rate = self.operations / seconds
        found = {
            "samples_s": round(processes * self.samples / seconds, 2),
            "tokens_s": round(processes * self.tokens / seconds, 1),
            "tflops": round(rate / 1e12, 4),
            "peak_share": round(rate / self.peak, 4),
        }
        self.samples = self.tokens = self.operations = 0
        self.began = now
        return found


def measure_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a square matrix product, best of five, in whichever dtype of the run is faster.

    A bf16 run computes most of its products in bf16, which many CPUs do at twice the rate of fp32 and others emulate.
    """
    dtypes = (torch.bfloat16, torch.float32) if precision == "bf16" else (torch.float32,)
    return max(_product_rate(device, dtype) for dtype in dtypes)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        out = a @ a
        # Reading one number waits for the product.
        out[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
