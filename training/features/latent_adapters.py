"""Latent adapters: in front of some layers every position reads the latents once more, by cross-attention.

    n = x / |x|                          x: what the layer gets, |x| the root mean square of a position
    q = n Q,  k = ẑ K,  v = ẑ V          ẑ: latents by their own root mean square; Q, K, V to a few dimensions, in heads
    x -> x + |x| (softmax(q k / sqrt(d)) v * gate) O

The gate, one number for each of those dimensions, starts at zero: a new latent adapter changes nothing, bit for bit.
Relative to |x|, because LLMs differ a hundredfold in the size of what their layers add up (Gemma's grows with depth).
After Flamingo's gated layers (Alayrac and others, arXiv 2204.14198), with the projections narrow and no MLP.

Keys and values depend on the latents alone: they are made once for a prompt and all that is generated behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.errors import ModelError
from ..config import Config
from ..llm import LMWrapper
from .base import Exports, Feature
from .options import LatentAdaptersOptions

EPS = 1e-6
"""Added to mean squares: an empty latent stays zero."""


class LatentAdapters(Feature):
    """``config.latent_adapters`` of one LLM, in front of N layers, with R dimensions each.

    State, f32: ``query`` [N,H,R], ``key`` and ``value`` [N,d_z,R], ``out`` [N,R,H], ``gate`` [N,R].

    Raises:
        ModelError: 3210 a layer that the LLM does not have.
    """

    kind: ClassVar[str] = "latent_adapters"
    exports: ClassVar[Exports] = "cross"

    def __init__(self, config: Config, llm: LMWrapper) -> None:
        super().__init__()
        own, count = config.latent_adapters, int(llm.model.config.num_hidden_layers)
        self.layers, self.heads = chosen(own, count, llm.name), own.heads
        # In a list, for it is the LLM's: none of it is part of this module.
        self._llm = [llm.model.model]
        n, rank = len(self.layers), own.rank
        self.query = _matrices(n, llm.width, rank)
        self.key = _matrices(n, config.d_z, rank)
        self.value = _matrices(n, config.d_z, rank)
        self.out = _matrices(n, rank, llm.width)
        self.gate = nn.Parameter(torch.zeros(n, rank))

    def facts(self) -> dict[str, Any]:
        """``layers``: numbers of those in front of which it stands; ``heads``."""
        return {"layers": list(self.layers), "heads": self.heads}

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents f32 [B,M,d_z] -> keys, scaled, f32 [N,B,heads,M,d]; values of the same shape, zero for empty slots;
        and bool [B,1,1,M], true where a slot holds a latent.
        """
        filled = latents.ne(0).any(-1)
        z = unit(latents.float())[0]
        keys, values = (self._split(torch.einsum("bmz,nzr->nbmr", z, w)) for w in (self.key, self.value))
        return keys * keys.shape[-1] ** -0.5, values, filled[:, None, None]

    @contextmanager
    def active(self, latents: Tensor) -> Iterator[None]:
        """The LLM with its chosen layers reading these latents, whatever it is given to read."""
        keys, values, filled = self.keys_values(latents)
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                hook = self._hook(index, keys[index], values[index], filled)
                handle = self._llm[0].layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def read(self, index: int, x: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
        """What the ``index``-th of the layers gets instead of x f[B,S,H]; keys and values f32 [B,heads,M,d]."""
        n, size = unit(x.float())
        # A row without any latent reads zeros: its slots' values are zero, whatever they weigh.
        scores = self._split(n @ self.query[index]) @ keys.transpose(-1, -2)
        weights = scores.masked_fill(~filled, torch.finfo(torch.float32).min).softmax(-1)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        return (x.float() + size * ((mixed * self.gate[index]) @ self.out[index])).to(x.dtype)

    def _hook(self, index: int, keys: Tensor, values: Tensor, filled: Tensor) -> Callable[..., Any]:
        def changed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if args:
                return (self.read(index, args[0], keys, values, filled), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.read(index, kwargs["hidden_states"], keys, values, filled)}

        return changed

    def _split(self, x: Tensor) -> Tensor:
        """[...,S,R] -> [...,heads,S,d]."""
        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        return x.reshape(shape).transpose(-2, -3)


def chosen(options: LatentAdaptersOptions, layers: int, llm: str) -> tuple[int, ...]:
    """Numbers of the layers in front of which latents are read, of an LLM with so many.

    Raises:
        ModelError: 3210 it has no such layer.
    """
    if options.layers and options.layers[-1] >= layers:
        raise ModelError(
            3210,
            "bad training option latent_adapters.layers",
            where=llm,
            expected=f"expected numbers from 0 to {layers - 1}, got {options.layers[-1]}",
        )
    parts = min(options.depths, layers - 1) + 1
    return options.layers or tuple(i * layers // parts for i in range(1, parts)) or (0,)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """f32 [...,N] divided by its root mean square, and that, f32 [...,1]."""
    size = (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    return x / size, size


def _matrices(count: int, rows: int, columns: int) -> nn.Parameter:
    """f32 [count,rows,columns], which keep the size of what they multiply."""
    return nn.Parameter(torch.randn(count, rows, columns) * rows**-0.5)
