"""Turn a GGUF file into a Hugging Face folder with float32 weights: exact dequantisation, no torch.

In: a GGUF file. Out: ``config.json``, ``tokenizer.json``, ``tokenizer_config.json``, ``model.safetensors`` in an
existing folder. Values are what the quantised file means, bit for bit what transformers' own loader gives.

Errors: ModelError 3202 (damaged file), 3203 (unsupported); EnvironmentFault 5011 (package gguf is missing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.console import track
from ..core.errors import EnvironmentFault, ModelError
from ..core.files import atomic_write_bytes, atomic_write_json, sha256_file
from .families import Family, Undo, family_of, hf_name
from .folder import CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS
from .gguf_file import Gguf, TensorInfo, read_gguf
from .tokenizer_json import to_text, tokenizer_config, tokenizer_json
from .weights_file import Array, write_float32

BLOCK: Final = 1 << 18
"""Values dequantised at a time: 1 MB of float32, which stays in the processor's cache."""

Dequantise = Callable[[npt.NDArray[np.uint8], int], Array]


def convert(gguf: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the four files into ``folder``; returns name -> ``{"sha256", "bytes"}``."""
    source = read_gguf(gguf)
    family = family_of(source.metadata)
    tied = all(tensor.name != "output.weight" for tensor in source.tensors)
    config = family.config(source.metadata, tied)
    atomic_write_json(folder / CONFIG, config)
    atomic_write_json(folder / TOKENIZER_CONFIG, tokenizer_config(source.metadata))
    atomic_write_bytes(folder / TOKENIZER, to_text(tokenizer_json(source.metadata)).encode())
    weights = _write_weights(source, family, config, folder / WEIGHTS)
    small = {name: _describe(folder / name) for name in (CONFIG, TOKENIZER, TOKENIZER_CONFIG)}
    return {**small, WEIGHTS: weights}


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _write_weights(source: Gguf, family: Family, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    shapes = {hf_name(family, tensor.name): tensor.shape for tensor in source.tensors}
    values = sum(math.prod(shape) for shape in shapes.values())
    dequantise = _load_dequantise()
    with track("convert weights", 4 * values, "B") as progress:

        def blocks() -> Iterator[Array]:
            for tensor in source.tensors:
                for block in tensor_blocks(source, tensor, family.undo(tensor.name, config), dequantise):
                    yield block
                    progress.advance(block.nbytes)

        written = write_float32(path, shapes, blocks())
    return {"sha256": written.sha256, "bytes": written.size}


def tensor_blocks(source: Gguf, tensor: TensorInfo, undo: Undo | None, dequantise: Dequantise) -> Iterator[Array]:
    """The values of one tensor as float32 rows, a few rows at a time; all at once where they change places."""
    rows, width = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    row_bytes = _row_bytes(tensor, width)
    stop = tensor.start + rows * row_bytes
    if stop > len(source.data):
        what = f"expected {stop} bytes, got {len(source.data)}"
        raise ModelError(3202, "GGUF file is damaged", where=tensor.name, expected=what)
    packed = source.data[tensor.start : stop].reshape(rows, row_bytes)
    step = rows if undo else max(1, BLOCK // width)
    for start in range(0, rows, step):
        block = dequantise(packed[start : start + step], tensor.ggml_type)
        yield undo(block) if undo else block


def _row_bytes(tensor: TensorInfo, width: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.ggml_type)]
    except (KeyError, ValueError) as error:
        raise ModelError(3203, "unknown quantisation", where=tensor.name, expected=str(error)) from error
    if width % per_block:
        raise ModelError(3202, "GGUF file is damaged", where=tensor.name, expected=f"rows of {per_block}, got {width}")
    return width // per_block * block_bytes


def _load_dequantise() -> Dequantise:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise EnvironmentFault(
            5011, "package gguf is not installed", where="models add", fix="pip install 'latentwire[export]'"
        ) from error

    def dequantise(packed: npt.NDArray[np.uint8], ggml_type: int) -> Array:
        kind = GGMLQuantizationType(ggml_type)
        if kind == GGMLQuantizationType.F32:
            return packed.view(np.float32)
        try:
            block: Array = dequantize(packed, kind)
        except NotImplementedError as error:
            raise ModelError(3203, "unsupported quantisation", where=kind.name, expected=str(error)) from error
        return block

    return dequantise
