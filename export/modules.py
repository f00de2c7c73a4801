"""Encoder and adapter graphs of a checkpoint, moved into a bundle.

The checkpoint holds them as small ONNX files whose weights lie in safetensors files. Here they are pointed
at the bundle's files: the same tensors by name, plus the tables that a checkpoint does not carry.

    encoder.onnx    embedding      -> embeddings.safetensors, the rest -> encoder.safetensors
    adapter.onnx    llm.embedding  -> decoder.safetensors,    the rest -> adapter.safetensors
                    prefix_tuning.front -> prefix_tuning.safetensors
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

from ..core.errors import BundleError
from ..engines.tensors import GraphSpec, TensorSpec
from .external import point, read_layout
from .graph import IR_VERSION, OPSET, read_spec, save
from .tables import Table, place_table

TABLE: Final = "embedding"
"""The encoder's frozen table: initializer of its graph and tensor of embeddings.safetensors, float16 [V,H]."""


def place_module(
    graph: Path,
    weights: Path,
    dest: Path,
    tables: Mapping[str, Table],
    spec: GraphSpec,
    features: Mapping[str, Path] | None = None,
) -> None:
    """Copy one graph and its weights into a bundle.

    Args:
        graph: ONNX file of the checkpoint.
        weights: safetensors file of the checkpoint.
        dest: ONNX file to write; the weights go beside it under the same name.
        tables: initializers that live in another file of the bundle, by name.
        spec: what the graph must take and return.
        features: kind -> file of the bundle with a feature's weights, which the graph calls ``KIND.NAME``.

    requires: every external initializer is named in ``tables`` or in ``weights``. ensures: the graph reads
    files of the bundle only, with the inputs and outputs of ``spec``.

    Raises:
        BundleError: 4001 unreadable, other inputs or outputs, opset or IR too new; 4008 a tensor is missing.
    """
    copy = dest.with_suffix(".safetensors")
    shutil.copyfile(weights, copy)
    model = read_model(graph)
    own = read_layout(copy)
    more = {kind: read_layout(path) for kind, path in (features or {}).items()}
    for tensor in list(model.graph.initializer):
        if tensor.name in tables:
            place_table(model, tensor, tables[tensor.name])
        elif tensor.data_location == TensorProto.EXTERNAL:
            kind, _, name = tensor.name.partition(".")
            if kind in more:
                point(tensor, more[kind], name)
            else:
                point(tensor, own, tensor.name)
    check_interface(model, spec, graph)
    save(model, dest)


def read_model(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data.

    Raises:
        BundleError: 4001 not ONNX, or an opset or IR version that the engines do not know.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as e:  # the protobuf library's errors share no base that is typed
        raise BundleError(4001, "cannot read an ONNX file", where=str(path), expected=str(e)) from e
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if model.ir_version > IR_VERSION or opset > OPSET:
        raise BundleError(
            4001,
            "ONNX file is too new",
            where=str(path),
            expected=f"expected at most IR {IR_VERSION} and opset {OPSET}, got {model.ir_version} and {opset}",
        )
    return model


def check_interface(model: onnx.ModelProto, spec: GraphSpec, path: Path) -> None:
    """Raise BundleError 4001 unless names, dtypes, ranks and fixed sizes are those of ``spec``."""
    found = read_spec(model)
    for side in ("inputs", "outputs"):
        want: tuple[TensorSpec, ...] = getattr(spec, side)
        have: tuple[TensorSpec, ...] = getattr(found, side)
        if len(want) != len(have) or not all(_fits(h, w) for h, w in zip(have, want, strict=True)):
            raise BundleError(
                4001,
                f"graph has other {side}",
                where=str(path),
                expected=f"expected {'; '.join(map(str, want))}, got {'; '.join(map(str, have))}",
            )


def _fits(have: TensorSpec, want: TensorSpec) -> bool:
    same = have.name == want.name and have.dtype == want.dtype and len(have.dims) == len(want.dims)
    # A size the graph leaves open may be fixed in the spec (tracers lose it), not the other way round.
    return same and all(isinstance(h, str) or h == w for h, w in zip(have.dims, want.dims, strict=True))
