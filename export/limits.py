"""How far a bundle may lie from float32, by precision. Numbers and their reasons, nothing else.

Errors are relative L2 norms unless another unit is named. ``hidden`` and ``logits`` are measured against the
reference, ``same`` between two runs of one bundle that must agree: alone and in a batch, padded and not.

float32 differs from the reference by the order of its sums only. With 16 bits every operation rounds: a layer of a
float16 model may be 2 % off. bfloat16 has an eighth of its steps, and a language model's few huge activations take
most of them: transformers' own bfloat16 run of SmolLM2-135M lies 4.0 % (states) and 6.6 % (logits) from its float32
run, so the bounds are 5 % and 10 %. Quantised weights have errors by design: they are stated and bounded so
that a wrong graph, which shows as 50 % and more or as half the choices, stands out; what the loss means for answers
is measured by ``loss`` and stands in the manifest. Between two runs of one bundle only the order of sums differs, but a
sum that falls on the other side of a rounding step spreads: in bfloat16, and where activations are rounded to 8 bits,
about as far as the error against float32.
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
        logits: of the logits after a prompt, worst prompt, both less their mean over the vocabulary, which changes no
            choice; for float32 their largest absolute error instead.
        absolute: ``logits`` is an absolute error.
        agreement: least share of greedy choices that equal the reference's.
        clear_only: choices count where the reference's margin exceeds twice the logit error, which cannot flip them.
        same: of logits between two runs of one bundle, worst row; both logits less their mean over the vocabulary.
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

LIMITS: Final[dict[str, Limits]] = {
    "fp32": Limits(1e-5, 1e-4, LOGIT_TOLERANCE, True, 1.0, True, 1e-4),
    "fp16": Limits(2e-2, 2e-2, 2e-2, False, 0.99, True, 2e-2),
    "bf16": Limits(5e-2, 5e-2, 1e-1, False, 0.99, True, 1.5e-1),
    "int8": Limits(None, None, 0.5, False, 0.8, False, 0.3),
    "w8": Limits(None, None, 0.3, False, 0.9, False, 0.3),
    "w4": Limits(None, None, 1.0, False, 0.6, False, 0.3),
    "fp8": Limits(None, None, 0.5, False, 0.8, False, 0.3),
}


def limits(precision: Precision) -> Limits:
    """The bounds of a form."""
    return LIMITS[precision.name]
