"""The cache size of a decoder file, fixed after it was written.

TensorRT's cache update wants a number where ONNX Runtime takes any. Nodes and weights stay what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

from .graph import save

AXIS: Final = 2
"""Of cache tensors [B,Hkv,C,D]."""


def fix_capacity(path: Path, capacity: int) -> None:
    """Rewrite a decoder so that its cache has ``capacity`` slots; changes the declared sizes only.

    requires: the file was built with a free capacity, weights beside it.
    """
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.shape.dim[AXIS].dim_value = capacity
    save(model, path)
