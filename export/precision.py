"""Numeric forms of a decoder: what its weights are stored as and how it multiplies with them.

A table of names, nothing else: ``projection`` makes nodes of it, ``weight_file`` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..core.errors import InputError

Matmul = Literal["plain", "int8", "blocks", "fp8"]


@dataclass(frozen=True)
class Precision:
    """One numeric form.

    Attributes:
        name: as on the command line and in the manifest.
        dtype: numpy name of activations, norms, tables and cache.
        matmul: ``plain`` weights of ``dtype``; ``int8`` weights per output channel, activations quantised as they
            come; ``blocks`` of weights with one scale each, activations of ``dtype``; ``fp8`` E4M3, calibrated scales.
        bits: of one weight in a matrix.
        on_cpu: ONNX Runtime's CPU provider loads it.
    """

    name: str
    dtype: str
    matmul: Matmul
    bits: int
    on_cpu: bool = True


PRECISIONS: Final[dict[str, Precision]] = {
    p.name: p
    for p in (
        Precision("fp32", "float32", "plain", 32),
        Precision("fp16", "float16", "plain", 16),
        Precision("bf16", "bfloat16", "plain", 16, on_cpu=False),
        Precision("int8", "float32", "int8", 8),
        Precision("w8", "float32", "blocks", 8),
        Precision("w4", "float32", "blocks", 4),
        Precision("fp8", "float16", "fp8", 8),
    )
}


def precision(name: str) -> Precision:
    """Look a form up.

    Raises:
        InputError: 2111 unknown name.
    """
    if name not in PRECISIONS:
        raise InputError(
            2111, "unknown precision", where=f"--precision {name}", expected=f"expected {', '.join(PRECISIONS)}"
        )
    return PRECISIONS[name]
