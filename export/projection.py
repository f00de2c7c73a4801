"""The nodes of a matrix product, in each form a precision multiplies in.

In: names of rows and of a weight. Out: the name of the product. What ``quantize`` stores, these nodes read.

Every form treats each row of activations by itself. ONNX's DynamicQuantizeLinear would take one scale for
a whole batch, and an answer would then depend on who shares its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..core.errors import BundleError
from .graph import CONTRIB, ELEMENT_TYPES, Graph
from .precision import Precision
from .quantize import BLOCK, FP8_DTYPE, quantises_head

INT8_TOP: Final = 127.0
UINT8_ZERO: Final = 128
SMALLEST: Final = 1e-30
"""Lower bound of a row's largest magnitude: a row of zeros must not divide by zero."""

ACCURACY: Final = 4
"""``MatMulNBits`` may round activations to int8, by row and block. Level 0 computes in float32, and for 8 bits
writes the whole matrix out as float32 at every call: a decode step takes 100 times as long."""


@dataclass(frozen=True)
class Operand:
    """Rows ready to be multiplied; made once for matrices that share an input.

    Attributes:
        x: [...,K]; for int8 uint8 [R,K].
        width: K.
        largest: of each row's magnitudes, float32 [R,1]; int8 only.
    """

    x: str
    width: int
    largest: str = ""


@dataclass(frozen=True)
class Projection:
    """Products of one decoder.

    Args:
        g: graph to add to.
        precision: form.
        scales: fp8 only: weight name -> what one step of its input is worth.
    """

    g: Graph
    precision: Precision
    scales: Mapping[str, float] = field(default_factory=dict)

    def operand(self, x: str, width: int, weight: str, *, raw: Operand | None = None, lines: str = "all") -> Operand:
        """Rows [...,width] in the form that products take.

        Args:
            x: the rows.
            width: of one.
            weight: one of those that will multiply them.
            raw: ``x`` is linear in a ``raw_product`` of these.
            lines: names what there is one row of; two operands with the same name have the same number of rows.
        """
        if self.precision.matmul == "int8":
            return self._int8_rows(x, width, raw, lines)
        return Operand(self._fp8_rows(x, weight) if self.precision.matmul == "fp8" else x, width)

    def product(self, rows: Operand, weight: str, bias: str = "") -> str:
        """Rows [...,K] times ``weight`` [K,N], plus ``bias`` [N]; int8 returns [R,N], R = B*S, the others [...,N]."""
        times = {"plain": self._plain, "int8": self._int8, "blocks": self._blocks, "fp8": self._fp8}
        y = times[self.precision.matmul](rows, weight)
        return self.g.op("Add", y, self.g.weight(bias)) if bias else y

    def raw_product(self, rows: Operand, weight: str) -> str:
        """As ``product``; for int8 without each row's factor, which a later ``operand`` takes in."""
        return self._int8_raw(rows, weight) if self.precision.matmul == "int8" else self.product(rows, weight)

    def head(self, last: str, width: int, plain: str, quantised: str) -> str:
        """Scores [B,V] of ``last`` [B,H]; the weight is ``plain`` [V,H], or what is stored for ``quantised``."""
        if quantises_head(self.precision):
            return self.product(self.operand(last, width, quantised, lines="last"), quantised)
        return self.g.op("Gemm", last, self.g.weight(plain), transB=1)

    def reshape(self, y: str, *tail: int) -> str:
        """A product as [B,S,*tail]."""
        g, name = self.g, "shape." + "x".join(map(str, tail))
        if self.precision.matmul != "int8":
            return g.op("Reshape", y, g.constant(name, np.array([0, 0, *tail], np.int64)))
        batch = g.once("shape.batch", "Shape", "inputs_embeds", start=0, end=2)
        ends = g.constant(f"{name}.tail", np.array(tail, np.int64))
        return g.op("Reshape", y, g.once(name, "Concat", batch, ends, axis=0))

    def stream(self, y: str, width: int) -> str:
        """A product as [B,S,width]; no node where it has that shape already."""
        return self.reshape(y, width) if self.precision.matmul == "int8" else y

    def _plain(self, rows: Operand, weight: str) -> str:
        return self.g.op("MatMul", rows.x, self.g.weight(weight))

    def _int8_rows(self, x: str, width: int, raw: Operand | None, lines: str) -> Operand:
        """Each row in 255 steps around 128, its largest magnitude 127 steps away.

        Unsigned, because ONNX Runtime has no fast kernel for signed times signed. Two reductions, because one of
        the magnitudes would first write them all out.
        """
        g = self.g
        flat = g.op("Reshape", x, g.constant(f"shape.rows.{width}", np.array([-1, width], np.int64)))
        axis = g.constant("axis.last", np.array([-1], np.int64))
        high, low = (g.op(f"Reduce{m}", flat, axis, keepdims=1) for m in ("Max", "Min"))
        largest = g.op("Max", high, g.op("Neg", low), g.constant("smallest", np.array(SMALLEST, np.float32)))
        step = g.op("Mul", largest, g.constant("int8.step", np.array(1 / INT8_TOP, np.float32)))
        step = g.op("Reshape", step, g.constant("shape.line", np.array([-1], np.int64)))
        zero = g.constant("uint8.zero", np.array(UINT8_ZERO, np.uint8))
        zeros = g.once(f"uint8.zeros.{lines}", "Expand", zero, g.once(f"shape.{lines}", "Shape", step))
        if raw:
            largest = g.op("Mul", largest, raw.largest)
        return Operand(g.op("QuantizeLinear", flat, step, zeros, axis=0), width, largest)

    def _int8(self, rows: Operand, weight: str) -> str:
        return self.g.op("Mul", self._int8_raw(rows, weight), rows.largest)

    def _int8_raw(self, rows: Operand, weight: str) -> str:
        """The contrib node takes int32 sums to float32 while they are in registers; a Cast would store them first.

        On x86 without VNNI its kernel adds pairs of products in 16 bits that saturate. SmolLM2 has such a pair in
        20,000 to 500,000, which moves a product by 0.6 to 3 % on average (computed, not run on such a processor).
        """
        g = self.g
        stored = "int8.step", g.weight(f"{weight}.scale"), "uint8.zero"
        return g.op("MatMulIntegerToFloat", rows.x, g.weight(f"{weight}.int8"), *stored, domain=CONTRIB)

    def _blocks(self, rows: Operand, weight: str) -> str:
        g = self.g
        blocks, scale = g.weight(f"{weight}.blocks"), g.weight(f"{weight}.scale")
        sizes = {"K": rows.width, "N": g.initializers[blocks].dims[0], "block_size": BLOCK}
        bits = self.precision.bits
        return g.op("MatMulNBits", rows.x, blocks, scale, domain=CONTRIB, bits=bits, accuracy_level=ACCURACY, **sizes)

    def _fp8_rows(self, x: str, weight: str) -> str:
        """Activations through E4M3 and back, with a scale known beforehand: the pair that TensorRT fuses."""
        if weight not in self.scales:
            raise BundleError(
                4001, "no calibrated scale", where=f"input of {weight}", expected=f"{len(self.scales)} scales are known"
            )
        g, dtype = self.g, np.dtype(self.precision.dtype)
        step = g.constant(f"{weight}.input_scale", np.array(self.scales[weight], dtype))
        narrow = g.op("QuantizeLinear", x, step, output_dtype=ELEMENT_TYPES[FP8_DTYPE])
        return g.op("DequantizeLinear", narrow, step)

    def _fp8(self, rows: Operand, weight: str) -> str:
        g = self.g
        stored = g.op("DequantizeLinear", g.weight(f"{weight}.fp8"), g.weight(f"{weight}.scale"), axis=1)
        return g.op("MatMul", rows.x, stored)
