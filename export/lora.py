"""LoRA merged into an LLM's weights: what the decoder of a bundle multiplies with.

    W [out,in]  ->  W + scale * B A        A [rank,in], B [out,rank]

Summed rank by rank in float64, whose sums are the same on every machine and in blocks of any size: the gate on
weights compares value by value. Needs no torch; ``merge`` does, for the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError
from ..engines.bundle import Bundle

KIND: Final = "lora"
BLOCKS: Final = {
    name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    for name in (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
}
"""Matrix -> the block of a layer that holds it."""

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lora:
    """Changes of an LLM's matrices.

    Attributes:
        path: where they were read.
        scale: alpha / rank.
        pairs: name of a matrix, as ``layers.0.self_attn.q_proj.weight`` -> A f64 [rank,in], B f64 [out,rank].
    """

    path: Path
    scale: float
    pairs: Mapping[str, tuple[F64, F64]]

    def change(self, key: str, start: int, count: int) -> F32:
        """What is added to ``count`` output rows of matrix ``key`` from row ``start`` on, f32 [count,in]."""
        a, b = self.pairs[key]
        total = np.zeros((count, a.shape[1]), np.float64)
        for row, column in zip(a, b.T, strict=True):
            total += column[start : start + count, None] * row
        return (self.scale * total).astype(np.float32)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse changes of matrices that are not there or have another shape.

        Args:
            shapes: of the LLM's tensors, by the same names.

        Raises:
            ModelError: 3223.
        """
        for key, (a, b) in self.pairs.items():
            wanted = shapes.get(key)
            if wanted != (len(b), a.shape[1]):
                raise ModelError(
                    3223,
                    f"LoRA of {key} does not fit the LLM",
                    where=str(self.path),
                    expected=f"expected shape {wanted or 'none'}, got {(len(b), a.shape[1])}",
                )


def read_lora(path: Path, facts: Mapping[str, Any]) -> Lora:
    """A feature's weights as training writes them: tensors ``A.LAYER/MATRIX`` and ``B.LAYER/MATRIX``.

    Args:
        path: safetensors file.
        facts: what checkpoint or manifest say of the feature; gives ``scale``.

    Raises:
        ModelError: 3224 the file or the facts are not those of a LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        sites = sorted(name[2:] for name in tensors if name.startswith("A."))
        if {f"{side}.{site}" for side in "AB" for site in sites} != set(tensors):
            raise ValueError("A and B do not belong together")
        pairs = {_key(s): (_wide(tensors[f"A.{s}"]), _wide(tensors[f"B.{s}"])) for s in sites}
        if any(a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] for a, b in pairs.values()):
            raise ValueError("A and B are of different ranks")
        return Lora(path, float(facts["scale"]), pairs)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise ModelError(3224, "weights of feature lora are damaged", where=str(path), expected=str(e)) from e


def _key(site: str) -> str:
    layer, name = site.split("/")
    return f"layers.{int(layer)}.{BLOCKS[name]}.{name}.weight"


def _wide(values: npt.NDArray[Any]) -> F64:
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    return values.astype(np.float64)


def lora_of(bundle: Bundle) -> Lora | None:
    """The changes that a bundle's decoder holds; None without any.

    Raises:
        ModelError: 3224; BundleError: 4008 the weights are not in the bundle.
    """
    facts = bundle.manifest.features.get(KIND)
    return None if facts is None else read_lora(bundle.file(f"{KIND}.safetensors"), facts)


def merge(model: Any, lora: Lora | None) -> Any:
    """Change the weights of a transformers model in place; the same model."""
    import torch

    if lora is not None:
        tensors = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
        lora.check({name: tuple(value.shape) for name, value in tensors.items()})
        with torch.no_grad():
            for key in lora.pairs:
                weight = tensors[key]
                weight += torch.from_numpy(lora.change(key, 0, len(weight))).to(weight.dtype)
    return model
