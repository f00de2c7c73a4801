"""A Hugging Face folder's tensors under the decoder graph's names, checked one by one.

In: a folder of safetensors and a ``DecoderConfig``. Out: arrays by graph name, one at a time, in the layout
the graph multiplies with. Knows no ONNX. Names are mapped here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from .families import DecoderConfig

Array = npt.NDArray[Any]

EMBEDDING: Final = "llm.embedding"
HEAD: Final = "llm.head"
FINAL_NORM: Final = "llm.norm"


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
    """Opens the shards of a folder and hands out tensors of the decoder, checked.

    Use as a context manager. Nothing is read before it is asked for, and nothing is kept.
    """

    def __init__(self, shards: list[Path], config: DecoderConfig) -> None:
        self.config = config
        self.sources = sources(config)
        self.shards = shards
        self._stack = ExitStack()
        self._at: dict[str, Any] = {}

    def __enter__(self) -> Self:
        from safetensors import safe_open

        for shard in self.shards:
            handle = self._stack.enter_context(safe_open(str(shard), framework="numpy"))
            self._at |= dict.fromkeys(handle.keys(), handle)
        self._check_names()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        """(graph name, array) for every tensor, one in memory at a time."""
        for name in self.sources:
            yield name, self.get(name)

    def get(self, name: str) -> Array:
        """One tensor: float32, in the graph's layout.

        Raises:
            ModelError: 3206 NaN or infinity in it.
        """
        source = self.sources[name]
        stored = self._read(self._key(source.key))
        if not np.isfinite(np.sum(stored, dtype=np.float64)) and not np.isfinite(stored).all():
            raise ModelError(
                3206,
                "weights hold NaN or infinity",
                where=f"tensor {self._key(source.key)}",
                fix="fetch the model again",
            )
        array = stored.T if source.transpose else stored
        if source.offset:
            array = array + np.float32(source.offset)
        return np.ascontiguousarray(array, dtype=np.float32)

    def _read(self, key: str) -> Array:
        import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16, which safetensors needs

        array: Array = self._at[key].get_tensor(key)
        return array.astype(np.float32, copy=False)

    def _key(self, suffix: str) -> str:
        return suffix if suffix.startswith("lm_head.") else f"model.{suffix}"

    def _check_names(self) -> None:
        wanted = {self._key(s.key): s.shape for s in self.sources.values()}
        # A tied head may be stored as well; older files carry the frequencies they were trained with.
        extra = {k for k in self._at if k not in wanted and not k.endswith("rotary_emb.inv_freq")}
        if self.config.tied:
            extra.discard("lm_head.weight")
        if missing := sorted(set(wanted) - set(self._at)):
            raise self._misfit(f"{len(missing)} tensors are missing", missing[0], "to be there")
        if extra:
            raise self._misfit(f"{len(extra)} tensors too many", min(extra), "not to be there")
        for key, shape in wanted.items():
            found = tuple(self._at[key].get_slice(key).get_shape())
            if found != shape:
                raise self._misfit("a tensor has another shape", key, f"{list(shape)}, got {list(found)}")

    def _misfit(self, what: str, key: str, expected: str) -> ModelError:
        return ModelError(
            3207,
            f"weights do not fit the config: {what}",
            where=f"tensor {key} in {self.shards[0].parent}",
            expected=f"expected it {expected}",
            fix="fetch the model again, or fix its config.json",
        )


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: 3204 missing or not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(3204, "cannot read a file of the model", where=str(path), expected=str(e)) from e
    if not isinstance(value, dict):
        raise ModelError(3204, "a file of the model is not a JSON object", where=str(path))
    return value
