"""A Hugging Face folder's tensors under the decoder graph's names, checked one by one.

In: safetensors files and a ``DecoderConfig``. Out: arrays by graph name, whole or in blocks, in the layout the graph
multiplies with. Knows no ONNX. Names are mapped here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from .families import DecoderConfig
from .lora import Lora
from .shards import BLOCK, Shards

Array = npt.NDArray[Any]

EMBEDDING: Final = "llm.embedding"
HEAD: Final = "llm.head"
FINAL_NORM: Final = "llm.norm"

EXPONENTS: Final = {
    "float32": (np.uint32, np.uint32(0x7F800000)),
    "float16": (np.uint16, np.uint16(0x7C00)),
    "bfloat16": (np.uint16, np.uint16(0x7F80)),
}
"""Dtype -> the integer of its size, and the bits of its exponent there."""


@dataclass(frozen=True)
class Source:
    """Where one graph tensor comes from.

    Attributes:
        key: name in the Hugging Face file, without the prefix ``model.``.
        shape: as stored there.
        transpose: stored [out,in]; the graph multiplies rows with [in,out].
        offset: added to every value.
    """

    key: str
    shape: tuple[int, ...]
    transpose: bool = False
    offset: float = 0.0


def sources(config: DecoderConfig) -> dict[str, Source]:
    """Graph name -> source, for every tensor the decoder needs."""
    c, s = config, config.switches
    found = {
        EMBEDDING: Source("embed_tokens.weight", (c.vocab_size, c.hidden_size)),
        FINAL_NORM: Source("norm.weight", (c.hidden_size,), offset=s.norm_offset),
    }
    if not c.tied:
        found[HEAD] = Source("lm_head.weight", (c.vocab_size, c.hidden_size))
    for i in range(c.num_layers):
        found |= {f"layer.{i}.{name}": source for name, source in _layer(c, f"layers.{i}.").items()}
    return found


def _layer(c: DecoderConfig, at: str) -> dict[str, Source]:
    s = c.switches
    q, kv, h, f = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size, c.intermediate_size
    widths = {"q": q, "k": kv, "v": kv}
    found = {n: Source(f"{at}self_attn.{n}_proj.weight", (w, h), transpose=True) for n, w in widths.items()}
    found["o"] = Source(f"{at}self_attn.o_proj.weight", (h, q), transpose=True)
    if s.qkv_bias:
        found |= {f"{n}_bias": Source(f"{at}self_attn.{n}_proj.bias", (w,)) for n, w in widths.items()}
    for name, shape in (("gate", (f, h)), ("up", (f, h)), ("down", (h, f))):
        found[name] = Source(f"{at}mlp.{name}_proj.weight", shape, transpose=True)
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if s.four_norms:
        norms = {
            "attention_norm": "input_layernorm",
            "attention_out_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_out_norm": "post_feedforward_layernorm",
        }
    found |= {n: Source(f"{at}{key}.weight", (h,), offset=s.norm_offset) for n, key in norms.items()}
    if s.qk_norm:
        for n in "qk":
            found[f"{n}_norm"] = Source(f"{at}self_attn.{n}_norm.weight", (c.head_dim,), offset=s.norm_offset)
    return found


class WeightReader:
    """Opens the shards of a folder and hands out tensors of the decoder, checked, and changed by ``lora``.

    Use as a context manager. Nothing is read before it is asked for, and nothing is kept.
    """

    def __init__(self, shards: list[Path], config: DecoderConfig, lora: Lora | None = None) -> None:
        self.config, self.lora = config, lora
        self.sources = sources(config)
        self.shards = Shards(shards)

    def __enter__(self) -> Self:
        """Open the files and compare names and shapes.

        Raises:
            ModelError: 3204, 3206, 3207 as ``Shards``; 3207 missing or extra tensors, other shapes; 3223 a LoRA of
                another LLM.
        """
        self.shards.__enter__()
        try:
            self._check_names()
            if self.lora is not None:
                self.lora.check({s.key: s.shape for s in self.sources.values()})
        except BaseException:
            self.shards.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.shards.__exit__()

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        """(graph name, array) for every tensor, one in memory at a time."""
        for name in self.sources:
            yield name, self.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """In the graph's layout."""
        source = self.sources[name]
        return source.shape[::-1] if source.transpose else source.shape

    def get(self, name: str) -> Array:
        """One tensor: float32, in the graph's layout.

        Raises:
            ModelError: 3206 NaN or infinity in it.
        """
        whole = np.empty(self.shape(name), np.float32)
        columns = self.sources[name].transpose
        for at, block in self.blocks(name):
            if columns:
                whole[:, at : at + block.shape[1]] = block
            else:
                whole[at : at + len(block)] = block
        return whole

    def blocks(self, name: str, elements: int = BLOCK) -> Iterator[tuple[int, Array]]:
        """One tensor in blocks of its output channels, which are what a file's rows are.

        Returns:
            first channel and block, in the graph's layout: of a matrix [in,n] columns, else rows. Of the dtype
            stored (float32, float16, bfloat16), or float32 where the family adds an offset or LoRA changes it.

        Raises:
            ModelError: 3203 another dtype; 3206 NaN or infinity, or bytes that cannot be read.
        """
        source = self.sources[name]
        key, at = self._key(source.key), 0
        for stored in self.shards.rows(key, elements):
            if not _finite(stored):
                raise ModelError(
                    3206, "weights hold NaN or infinity", where=f"tensor {key}", fix="fetch the model again"
                )
            block = stored.astype(np.float32) + np.float32(source.offset) if source.offset else stored
            if self.lora is not None and source.key in self.lora.pairs:
                block = block.astype(np.float32) + self.lora.change(source.key, at, len(block))
            yield at, block.T if source.transpose else block
            at += len(stored)

    def _key(self, suffix: str) -> str:
        return suffix if suffix.startswith("lm_head.") else f"model.{suffix}"

    def _check_names(self) -> None:
        wanted = {self._key(s.key): s.shape for s in self.sources.values()}
        # A tied head may be stored as well; older files carry the frequencies they were trained with.
        extra = {k for k in self.shards.held if k not in wanted and not k.endswith("rotary_emb.inv_freq")}
        if self.config.tied:
            extra.discard("lm_head.weight")
        if missing := sorted(set(wanted) - set(self.shards.held)):
            raise self._misfit(f"{len(missing)} tensors are missing", missing[0], "to be there")
        if extra:
            raise self._misfit(f"{len(extra)} tensors too many", min(extra), "not to be there")
        for key, shape in wanted.items():
            found = self.shards.shape(key)
            if found != shape:
                raise self._misfit("a tensor has another shape", key, f"{list(shape)}, got {list(found)}")

    def _misfit(self, what: str, key: str, expected: str) -> ModelError:
        return ModelError(
            3207,
            f"weights do not fit the config: {what}",
            where=f"tensor {key} in {self.shards.paths[0].parent}",
            expected=f"expected it {expected}",
            fix="fetch the model again, or fix its config.json",
        )


def _finite(array: Array) -> bool:
    """No NaN and no infinity: nowhere are all bits of the exponent set. Makes no copy in another dtype."""
    whole, exponent = EXPONENTS[array.dtype.name]
    return not ((array.view(whole) & exponent) == exponent).any()
