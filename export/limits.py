"""How far a bundle may lie from float32, by precision. Numbers and their reasons, nothing else.

Errors are relative L2 norms unless another unit is named. ``hidden`` and ``logits`` are measured against the
reference, ``same`` between two runs of one bundle that must agree: alone and in a batch, padded and not.

float32 differs from the reference by the order of its sums only. With 16 bits every operation rounds, so a layer
may be 2 % off; that is also the bound for the logits. Quantised weights have errors by design: they are stated and
bounded loosely, so that a wrong graph (0.5 and more) still stands out, while what the loss means for answers is
measured by ``loss`` and stands in the manifest. Between two runs of one bundle only the order of sums differs, and
with it, in the 16-bit and quantised forms, a rounding here and there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .precision import Precision


@dataclass(frozen=True)
class Limits:
    """Bounds of one precision.

    Attributes:
        hidden: of one layer's states; None: stated, not bounded.
        sampled: the same where only some channels were recorded: fewer numbers, perhaps another processor's sums.
        logits: of the logits after a prompt, worst prompt; for float32 their largest absolute error instead.
        absolute: ``logits`` is an absolute error.
        agreement: least share of greedy choices that equal the reference's.
        clear_only: choices count where the reference's margin exceeds twice the logit error, which cannot flip them.
        same: of logits between two runs of one bundle, worst row.
    """

    hidden: float | None
    sampled: float | None
    logits: float
    absolute: bool
    agreement: float
    clear_only: bool
    same: float

    @property
    def unit(self) -> str:
        """Of ``logits``."""
        return "max abs" if self.absolute else "rel L2"


LOGIT_TOLERANCE: Final = 1e-3
"""float32: largest absolute error of a logit."""

_HALF: Final = Limits(2e-2, 2e-2, 2e-2, False, 0.99, True, 2e-2)

LIMITS: Final[dict[str, Limits]] = {
    "fp32": Limits(1e-5, 1e-4, LOGIT_TOLERANCE, True, 1.0, True, 1e-4),
    "fp16": _HALF,
    "bf16": _HALF,
    "int8": Limits(None, None, 0.25, False, 0.75, False, 2e-2),
    "w8": Limits(None, None, 0.25, False, 0.75, False, 2e-2),
    "w4": Limits(None, None, 0.5, False, 0.5, False, 2e-2),
    "fp8": Limits(None, None, 0.25, False, 0.75, False, 2e-2),
}


def limits(precision: Precision) -> Limits:
    """The bounds of a form."""
    return LIMITS[precision.name]
