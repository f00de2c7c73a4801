"""The LLM a latent prompt is made for, as far as a prompt can be judged by it.

In: a bundle's engine. Out: sizes, fingerprint and the scale of its input embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from ...core.errors import InputError
from ...engines.base import Engine
from ..splice import embeddings

Dtype = Literal["float32", "float16", "bfloat16"]
"""In which a runtime takes embeddings; this package computes and keeps float32."""

_SAMPLE: Final = 256


@dataclass(frozen=True)
class Target:
    """One LLM.

    Attributes:
        name: as the bundle has it.
        fingerprint: hex SHA-256 of its weights.
        hidden_size: H.
        vocab_size: V.
        max_positions: longest prompt.
        scale: root mean square of its input embeddings, as its first layer receives them.
        dtype: in which embeddings are sent.
    """

    name: str
    fingerprint: str
    hidden_size: int
    vocab_size: int
    max_positions: int
    scale: float
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            expected = f"expected {', '.join(get_args(Dtype))}, got {self.dtype!r}"
            raise InputError(2143, "unknown dtype of embeddings", where="latent prompt", expected=expected)


def target_of(engine: Engine, dtype: Dtype = "float32") -> Target:
    """What the engine's bundle says, and the scale of a spread sample of its embedding table.

    Raises:
        InputError: 2143 unknown dtype.
    """
    llm = engine.bundle.manifest.llm
    ids = np.linspace(0, llm.vocab_size - 1, min(_SAMPLE, llm.vocab_size)).astype(np.int64)[None]
    scale = float(np.sqrt(np.square(embeddings(engine, ids), dtype=np.float64).mean()))
    return Target(llm.name, llm.fingerprint, llm.hidden_size, llm.vocab_size, llm.max_positions, scale, dtype)
