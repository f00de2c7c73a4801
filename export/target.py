"""What an export is for: an engine and the numbers its decoder file is made with, checked against each other.

Options in, ``Target`` out. Impossible combinations are refused here, by name, before anything is read or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast

from ..core.errors import InputError
from .attention import Flavour
from .precision import PRECISIONS, Precision, precision

Kind = Literal["onnx", "tensorrt", "tensorrt-rtx"]
KINDS: Final[tuple[Kind, ...]] = ("onnx", "tensorrt", "tensorrt-rtx")
COMPILED: Final = ("tensorrt", "tensorrt-rtx")

COMPILED_PRECISIONS: Final = ("fp16", "bf16", "fp8")
"""TensorRT's fused attention has no fp32 kernel, and its parser knows neither MatMulInteger nor MatMulNBits."""

FAST: Final = "int8"
"""For ONNX Runtime on the CPU unless asked otherwise; fp32 is the exact form."""

CAPACITY: Final = 512
"""Cache slots of a compiled decoder unless asked otherwise: a text of about 400 tokens, a question and an answer."""
BATCH: Final = 64


@dataclass(frozen=True)
class Target:
    """One engine's wishes.

    Attributes:
        kind: ``onnx``, or the TensorRT package that compiles the graphs too.
        precision: of the decoder.
        flavour: of its attention node.
        capacity: cache slots a row that the file is fixed to; 0: any.
        batch: largest batch of a plan.
        length: longest prompt of a plan, in positions.
        gpus: compute capabilities a plan is for (``sm_89``); empty: this machine's.
    """

    kind: Kind
    precision: Precision
    flavour: Flavour
    capacity: int
    batch: int
    length: int
    gpus: tuple[str, ...]

    @property
    def compiled(self) -> bool:
        """Plans are built."""
        return self.kind in COMPILED


@dataclass(frozen=True)
class Wishes:
    """A target as asked for on the command line; None: the default for the rest."""

    kind: str = "onnx"
    precision: str | None = None
    flavour: str | None = None
    capacity: int | None = None
    batch: int | None = None
    length: int | None = None
    gpus: tuple[str, ...] = ()


def choose(wishes: Wishes) -> Target:
    """Fill in defaults and check that the wishes fit together.

    Raises:
        InputError: 2111 an unknown name, a number below 1, or wishes that exclude each other.
    """
    if wishes.kind not in KINDS:
        raise _bad("--target", wishes.kind, " or ".join(KINDS))
    kind: Kind = wishes.kind
    compiled = kind in COMPILED
    form = precision(wishes.precision or ("fp16" if compiled else FAST))
    if compiled and form.name not in COMPILED_PRECISIONS:
        raise _bad(f"--target {kind} --precision", form.name, " or ".join(COMPILED_PRECISIONS))
    flavour = wishes.flavour or "dual"
    allowed = ("dual", "mask") if compiled else ("dual", "mask", "gqa")
    if flavour not in allowed:
        raise _bad(f"--target {kind} --flavour", flavour, " or ".join(allowed))
    if not compiled:
        for option, value in (("batch", wishes.batch), ("length", wishes.length), ("gpu", wishes.gpus)):
            if value:
                raise _bad(f"--{option}", value, "--target tensorrt beside it")
    for name in ("capacity", "batch", "length"):
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise _bad(f"--{name}", value, "at least 1")
    capacity = wishes.capacity or (CAPACITY if compiled else 0)
    length = wishes.length or capacity
    if compiled and length > capacity:
        raise _bad("--length", length, f"at most the capacity, {capacity}")
    return Target(kind, form, cast(Flavour, flavour), capacity, wishes.batch or BATCH, length, wishes.gpus)


PLAIN: Final = Target("onnx", PRECISIONS["fp32"], "dual", 0, BATCH, 0, ())
"""The exact form: the model's own numbers, on every engine but TensorRT."""


def _bad(option: str, came: object, expected: str) -> InputError:
    return InputError(2111, "options do not fit together", where=f"{option} {came}", expected=f"expected {expected}")
