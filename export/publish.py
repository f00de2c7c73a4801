"""Training run to a checkpoint that others run: fp16 weights, and graphs traced once beside them.

    RUN/best -> meta.json, encoder.safetensors + .onnx, adapter-LLM.safetensors + .onnx

What the graphs compute is compared with the PyTorch modules before the folder appears. Needs torch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..core.console import message
from ..core.errors import BundleError
from ..core.files import atomic_folder
from ..engines.ort import open_session
from ..engines.specs import adapter_spec, encoder_spec
from ..engines.tensors import GraphSpec
from .external import write_weights
from .features import feature_name
from .modules import TABLE, place_module
from .tables import Table
from .weights import EMBEDDING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..training.features.base import Feature
    from ..training.llm import LMWrapper
    from ..training.model import LatentModel

TOLERANCE: Final = 1e-4
"""Largest relative difference (Frobenius norm) of graph and module; both read the same fp16 weights in fp32."""

CODES_APART: Final = 2e-3
"""Largest share of codes of a traced quantiser that differ from the module's."""

DATA_OPTIONS: Final = ("data", "eval_data", "prose")
FOLDER_OPTIONS: Final = ("teacher", "init", "teacher_cache")

KEPT: Final = ("*.md", "*.py", "*.toml", "LICENSE*", "golden-*.json")
"""Files beside the weights that publishing again leaves alone."""


def publish(source: Path, out: Path, about: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Publish a trained checkpoint.

    Args:
        source: checkpoint folder of a run.
        out: new folder.
        about: entry ``about`` of ``meta.json``: licence, data, training command, hardware.
        overwrite: replace ``out``; its card, package marker and recorded answers stay.

    Raises:
        ModelError: 3102, 3204-3223 from the checkpoint.
        BundleError: 4010 a graph computes something else than its module.
        EnvironmentFault: 5008 ``out`` exists.
    """
    import torch

    from ..training.building import open_checkpoint
    from ..training.checkpoint import config_of, write

    model, meta = open_checkpoint(source, "cpu")
    round_weights(model)
    # The config of the run, not of this opening; names of data files, not where they lay on the machine that trained.
    config = config_of(meta, str(source))
    files: dict[str, Any] = {f: tuple(Path(p).name for p in getattr(config, f)) for f in DATA_OPTIONS}
    files |= {f: Path(getattr(config, f)).name for f in FOLDER_OPTIONS}
    model.config = replace(config, **files)
    with atomic_folder(out, overwrite=overwrite) as folder:
        write(folder, model, torch.float16, step=meta.get("step"), about=dict(about))
        trace_and_compare(model, folder)
        for pattern in KEPT:
            for path in out.glob(pattern):
                shutil.copyfile(path, folder / path.name)
    return out


def round_weights(module: nn.Module) -> None:
    """Round everything that is stored to fp16, in place, so that what is traced and compared is what ships.

    Only what is stored: rotary frequencies and tables are made anew in fp32 by whoever opens the checkpoint. Token ids
    are no weights: a half has gaps from 2,048 on.
    """
    import torch

    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())


def trace_and_compare(model: LatentModel, folder: Path) -> None:
    """Trace the modules into ``folder`` and run each graph against its module; BundleError 4010."""
    import torch

    from ..training.checkpoint import adapter_file, feature_file
    from .trace import AnswerRows, trace_checkpoint

    message("publish: tracing encoder and adapters")
    trace_checkpoint(model, folder)
    tables: dict[str, npt.NDArray[Any]] = {}
    vocabulary = 256
    if model.config.encoder_type != "bytes":
        tables[TABLE] = model.encoder.get_buffer("embedding").numpy()
        vocabulary = len(tables[TABLE])
    # Three texts of about forty states, the last one of nine: fewer than it has slots for.
    stride = model.config.stride
    ids, lengths = torch.randint(vocabulary, (3, 40 * stride)), torch.tensor([40, 33, 9]) * stride
    with torch.no_grad():
        z = model.encode(ids, lengths)
        slots = np.arange(z.shape[1])
        feeds = {"input_ids": ids.numpy(), "lengths": lengths.numpy(), "slots": slots}
        _compare(folder / "encoder.onnx", tables, feeds, encoder_spec(z.shape[2]), z.numpy())
        _compare_quantiser(model, folder, z)
        # Without the short text: its empty slots are zero, and a lookup by angle is arbitrary for them.
        z = z[:2]
        for llm in model.llms:
            adapter = model.adapter(llm)
            features = model.features_of(llm)
            rows = AnswerRows(adapter, model.config.task_tokens, features)(z).numpy()
            graph = (folder / adapter_file(llm.name)).with_suffix(".onnx")
            _compare(
                graph,
                {EMBEDDING: llm.embedding.numpy()},
                {"latents": z.numpy()},
                adapter_spec(z.shape[2], llm.width),
                rows,
                {kind: folder / feature_file(kind, llm.name) for kind in features},
            )
            _compare_prefix(model, llm, folder, z)
            _compare_cross(features, folder, llm.name, z)


def _compare_quantiser(model: LatentModel, folder: Path, z: Tensor) -> None:
    """Run the quantiser's graphs, if there are any, against it; BundleError 4010."""
    if model.quantiser is None:
        return
    codes = model.quantiser.codes(z).numpy()
    found = _run(folder / "quantise.onnx", {"latents": z.numpy()})
    # A value on the edge of two levels may fall to either side of it, as sums are made in another order.
    _judge("quantise.onnx", "share of other codes", float((found != codes).mean()), CODES_APART)
    found = _run(folder / "dequantise.onnx", {"codes": codes})
    expected = model.quantiser.latents(model.quantiser.codes(z)).numpy()
    _judge("dequantise.onnx", "relative difference", _apart(found, expected), TOLERANCE)


def _compare(
    graph: Path,
    tables: Mapping[str, npt.NDArray[Any]],
    feeds: Mapping[str, npt.NDArray[Any]],
    spec: GraphSpec,
    expected: npt.NDArray[Any],
    features: Mapping[str, Path] | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        placed = Path(scratch) / graph.name
        stored = {
            name: Table(write_weights(placed.with_name(f"{name}.safetensors"), {name: t})) for name, t in tables.items()
        }
        copies = {k: Path(shutil.copyfile(f, placed.with_name(feature_name(k)))) for k, f in (features or {}).items()}
        place_module(graph, graph.with_suffix(".safetensors"), placed, stored, spec, copies)
        (found,) = open_session(placed, 0).run(None, dict(feeds))
    _judge(graph.name, "relative difference", _apart(found, expected), TOLERANCE)


def _compare_prefix(model: LatentModel, llm: LMWrapper, folder: Path, z: Tensor) -> None:
    """Trace the feature that makes keys and values, if there is one, and run the graph against it; BundleError 4010."""
    from .trace_prefix import OUTPUTS, prefix_feature, prefix_module, trace_prefix

    feature = prefix_feature(model, llm)
    if feature is None:
        return
    graph = trace_prefix(model, llm, feature, folder)
    wanted = prefix_module(model, llm, feature)(z)
    found = open_session(graph, 0).run(list(OUTPUTS), {"latents": z.numpy()})
    for name, have, want in zip(OUTPUTS, found, wanted, strict=True):
        # A new feature gives zeros, which have no relative difference.
        error = _apart(have, want.numpy()) if want.any() else float(np.abs(have).max())
        _judge(f"{graph.name} {name}", "relative difference", error, TOLERANCE)


def _compare_cross(features: Mapping[str, Feature], folder: Path, llm: str, z: Tensor) -> None:
    """What a bundle's graphs will compute for layers that read latents, if there are any; BundleError 4010."""
    from ..training.checkpoint import feature_file
    from ..training.features.latent_adapters import LatentAdapters
    from .compare_cross import crossed

    for feature in features.values():
        if isinstance(feature, LatentAdapters):
            for name, (have, want) in crossed(feature, folder / feature_file(feature.kind, llm), z).items():
                _judge(f"{feature.kind} {name}", "relative difference", _apart(have, want), TOLERANCE)


def _run(graph: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """A graph that reads no table of others: its weights lie beside it."""
    (found,) = open_session(graph, 0).run(None, dict(feeds))
    out: npt.NDArray[Any] = found
    return out


def _apart(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _judge(graph: str, what: str, error: float, most: float) -> None:
    message(f"publish: {graph}, {what} from its module {error:.1e}")
    if not error <= most:
        raise BundleError(
            4010,
            "graph differs from its module",
            where=graph,
            expected=f"expected a {what} of at most {most}, got {error:.3g}",
        )
