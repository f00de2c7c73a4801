"""The quantiser of a checkpoint in a bundle: two small graphs that read the encoder's weight file.

    quantise.onnx     latents f32 [B,M,d_z] -> codes i64 [B,M,D]
    dequantise.onnx   codes i64 [B,M,D]     -> latents f32 [B,M,d_z]

A checkpoint that was trained without one has neither, and so has its bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from onnx import TensorProto

from ..core.errors import BundleError
from ..engines.specs import quantiser_specs
from .checkpoint import Checkpoint
from .external import point, read_layout
from .graph import read_spec, save
from .modules import check_interface, read_model

PARTS: Final = ("quantise", "dequantise")


def write_quantiser(checkpoint: Checkpoint, folder: Path) -> None:
    """Place both graphs beside ``encoder.safetensors`` of a bundle under construction, if there are any.

    Raises:
        BundleError: 4001 a graph with other inputs or outputs; 4008 a weight that the encoder's file does not hold.
        ModelError: 3204 one of the two graphs is missing.
    """
    if not any((checkpoint.path / f"{part}.onnx").is_file() for part in PARTS):
        return
    weights = read_layout(folder / "encoder.safetensors")
    dims = code_dims(checkpoint.path)
    for part, spec in quantiser_specs(checkpoint.encoder.d_z, dims).items():
        source = checkpoint.file(f"{part}.onnx")
        model = read_model(source)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                point(tensor, weights, tensor.name)
        check_interface(model, spec, source)
        save(model, folder / f"{part}.onnx")


def code_dims(folder: Path) -> int:
    """Codes of one latent, as ``quantise.onnx`` of a folder says; 0 without one.

    Raises:
        BundleError: 4001 the graph does not say.
    """
    path = folder / "quantise.onnx"
    if not path.is_file():
        return 0
    dims = read_spec(read_model(path)).outputs[0].dims[-1]
    if not isinstance(dims, int):
        raise BundleError(4001, "graph has an open number of codes", where=str(path), expected=f"got {dims}")
    return dims
