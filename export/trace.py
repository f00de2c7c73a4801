"""Trained modules to ONNX graphs, through torch's own exporter. Needs torch; runs where checkpoints are made.

    encoder, adapter (PyTorch) -> encoder.onnx, adapter-LLM.onnx beside the fp16 weights they read

Weights stay fp16 in the file and are cast in the graph, which engines fold when they load it. Once the graphs lie
beside the weights, nobody who only runs the checkpoint needs torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import numpy_helper

from ..core.errors import BundleError
from ..core.files import atomic_write_bytes
from .external import Layout, point, read_layout
from .graph import IR_VERSION, OPSET

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..training.features.base import Feature
    from ..training.fsq import Quantiser
    from ..training.model import LatentModel
    from ..training.token_codes import TokenQuantiser

FOLDED_ELEMENTS: Final = 16
"""Shapes and axes have fewer; weights, which must stay named tensors, have more."""
INLINE_BYTES: Final = 1024
"""Constants up to this size may stay inside the ONNX file; anything larger must be a named weight."""


def trace_checkpoint(model: LatentModel, folder: Path) -> list[Path]:
    """Write ``encoder.onnx``, the quantiser's two graphs and an ``adapter-LLM.onnx`` for each LLM.

    Args:
        model: the trained model on the CPU.
        folder: a published checkpoint: holds the fp16 safetensors files of the same model.

    Raises:
        BundleError: 4001 a graph carries a large constant that no weight file holds.
    """
    import torch

    from ..training.checkpoint import adapter_file, encoder_file, feature_file

    config = model.config
    ids, lengths = torch.ones(2, 24, dtype=torch.int64), torch.tensor([24, 17])
    slots = torch.arange(config.latent_len)
    done = [
        trace_module(
            model.encoder,
            {"input_ids": ids, "lengths": lengths, "slots": slots},
            {"input_ids": {0: "B", 1: "S"}, "lengths": {0: "B"}, "slots": {0: "M"}},
            "latents",
            read_layout(folder / encoder_file()),
            {} if config.encoder_type == "bytes" else {"embedding": "embedding"},
            folder / "encoder.onnx",
        )
    ]
    if model.quantiser is not None:
        done += _trace_quantiser(model.quantiser, config.d_z, folder)
    for llm in model.llms:
        z = torch.randn(2, config.latent_len, config.d_z)
        done.append(
            trace_module(
                AnswerRows(model.adapter(llm), config.task_tokens, model.features_of(llm)),
                {"latents": z},
                {"latents": {0: "B", 1: "M"}},
                "rows",
                read_layout(folder / adapter_file(llm.name)),
                {"llm_embedding": "llm.embedding"},
                (folder / adapter_file(llm.name)).with_suffix(".onnx"),
                {kind: read_layout(folder / feature_file(kind, llm.name)) for kind in model.features_of(llm)},
            )
        )
    return done


def _trace_quantiser(quantiser: Quantiser | TokenQuantiser, d_z: int, folder: Path) -> list[Path]:
    """``quantise.onnx`` and ``dequantise.onnx``; their weights are among the encoder's."""
    import torch
    from torch import Tensor, nn

    from ..training.checkpoint import encoder_file

    class _Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantiser = quantiser

        def forward(self, latents: Tensor) -> Tensor:
            return self.quantiser.codes(latents)

    class _Latents(_Codes):
        def forward(self, codes: Tensor) -> Tensor:
            return self.quantiser.latents(codes)

    weights, axes = read_layout(folder / encoder_file()), {0: "B", 1: "M"}
    z, codes = torch.randn(2, 5, d_z), torch.ones(2, 5, quantiser.dims, dtype=torch.int64)
    return [
        trace_module(_Codes(), {"latents": z}, {"latents": axes}, "codes", weights, {}, folder / "quantise.onnx"),
        trace_module(_Latents(), {"codes": codes}, {"codes": axes}, "latents", weights, {}, folder / "dequantise.onnx"),
    ]


def AnswerRows(adapter: nn.Module, task_tokens: int, features: Mapping[str, Feature]) -> nn.Module:  # noqa: N802 - stands for a class, made late because of torch
    """The adapter as the runtime sees it: rows of the first task only, then what features add, f32 [B,M+K+V,H]."""
    from torch import Tensor, nn

    class _AnswerRows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adapter = adapter
            self.features = nn.ModuleDict({kind: own for kind, own in features.items() if own.exports == "rows"})

        def forward(self, latents: Tensor) -> Tensor:
            rows: Tensor = self.adapter(latents)
            rows = rows[:, : latents.shape[1] + task_tokens]
            for own in self.features.values():
                rows = own.rows(rows, latents)  # type: ignore[operator]
            return rows

    return _AnswerRows()


def trace_module(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, Mapping[int, str]],
    output: str | tuple[str, ...],
    weights: Layout,
    tables: Mapping[str, str],
    path: Path,
    features: Mapping[str, Layout] | None = None,
) -> Path:
    """Export one module and point its weights at the safetensors file; those of features at theirs."""
    import torch
    from onnx_ir.passes import common as common_passes
    from onnxscript.optimizer import fold_constants

    dims = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = (tuple({axis: dims[d] for axis, d in dynamic[name].items()} for name in inputs),)
    wrapped = half(module, set(tables))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            wrapped,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=[output] if isinstance(output, str) else list(output),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    # TensorRT takes the axes of a reduction from a constant, not from nodes that compute one.
    fold_constants(program.model, input_size_limit=FOLDED_ELEMENTS, output_size_limit=FOLDED_ELEMENTS)
    common_passes.RemoveUnusedNodesPass()(program.model)
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    names = {own: name.removeprefix("adapter.").removeprefix("features.") for own, name in wrapped.names.items()}
    _place(model, weights, tables, names, path, features or {})
    # Unchecked: a checkpoint's graph names tables that only a bundle has, and is checked when it is placed there.
    atomic_write_bytes(path, model.SerializeToString())
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own internals (and on packages that are not wanted) off the screen."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def half(module: nn.Module, tables: set[str]) -> Any:
    """The module with fp16 weights that it casts to f32 when called; ``tables`` and whole
    numbers stay as they are.

    ``names`` maps the buffers of the result to the module's own tensor names.
    """
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call

    kept = dict(module.state_dict())
    kept |= {name: b for name, b in module.named_buffers() if name.rsplit(".", 1)[-1] in tables}

    def is_kept(name: str, value: Tensor) -> bool:
        return name.rsplit(".", 1)[-1] in tables or not value.is_floating_point()

    class _Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = {f"w{number}": name for number, name in enumerate(kept)}
            # In a list, so that the module's own fp32 weights are not registered beside the fp16 ones.
            self._module = [module]
            for own, name in self.names.items():
                value = kept[name].detach()
                self.register_buffer(own, value if is_kept(name, value) else value.half())

        def forward(self, *inputs: Tensor) -> Any:
            # A table is cast behind its lookup, by the module: engines would fold a cast of all of it into memory.
            values = {
                name: buffer if is_kept(name, buffer := self.get_buffer(own)) else buffer.float()
                for own, name in self.names.items()
            }
            return functional_call(self._module[0], values, inputs)

    with torch.no_grad():
        return _Half().eval()


def _place(
    model: onnx.ModelProto,
    weights: Layout,
    tables: Mapping[str, str],
    names: Mapping[str, str],
    path: Path,
    features: Mapping[str, Layout],
) -> None:
    """Give weights their checkpoint names and point them at the safetensors file; changes ``model``.

    A weight ``KIND.NAME`` of a feature is NAME in that feature's file.

    A table of somebody else's (``tables``) gets a placeholder location: export knows where it lies.
    """
    renamed: dict[str, str] = {}
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        own = names.get(tensor.name)
        if own is None:
            if numpy_helper.to_array(tensor).nbytes > INLINE_BYTES:
                raise BundleError(
                    4001, "graph holds a large constant", where=f"{tensor.name} {list(tensor.dims)} in {path}"
                )
            continue
        table = tables.get(own.rsplit(".", 1)[-1])
        old = tensor.name
        renamed[old] = tensor.name = table or own
        kind, _, name = own.partition(".")
        if table is None and kind in features:
            point(tensor, features[kind], name)
        elif table is None:
            point(tensor, weights, own)
        else:
            _placeholder(tensor)
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    taken = {*names.values(), *tables.values()}
    renamed |= {o: f"{o}_value" for node in model.graph.node for o in node.output if o in taken}
    for node in model.graph.node:
        # The tracer's notes (source lines and paths of the machine that traced) are not for others.
        del node.metadata_props[:]
        node.doc_string = ""
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = renamed.get(name, name)


def _placeholder(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="set-by-export")
