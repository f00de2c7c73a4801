"""Whether ONNX Runtime really computes here: one product of two matrices, compared with numpy."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..core.errors import BundleError
from .ort_cuda import place_of, providers
from .ort_session import guarded, open_session

GRAPH: Final = (
    b'\x08\x08\x12\x00:D\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x05probeZ\x13\n\x01x\x12\x0e\n\x0c'
    b"\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"B\x04\n\x00\x10\x11"
)
"""An ONNX model, opset 17: y = x x, both f32 [2,2]. Bytes, so that nothing but ONNX Runtime is needed."""


def compute(device: str) -> None:
    """Run the graph on ``cpu`` or ``cuda``.

    Raises:
        EnvironmentFault: 5001 no such device. BundleError: 4001 it cannot run, or computes something else.
    """
    place = place_of(device)
    session = open_session(GRAPH, 1, providers=providers(place, False))
    x = np.array([[1, 2], [3, 4]], np.float32)
    (y,) = guarded(lambda: session.run(None, {"x": x}), "a graph in memory")
    if not np.array_equal(y, x @ x):
        raise BundleError(4001, "ONNX Runtime computes wrong numbers", where=device, expected=f"got {y.tolist()}")
