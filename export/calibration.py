"""How large each channel of activations grows on real text, and the shifts that follow from it.

    weights -> decoder with 8-bit blocks -> the packaged documents -> largest magnitudes -> shifts

The decoder that is watched has 8-bit weights and float activations: a quarter of the float32 file on the disk and in
memory, and nearer to float32 than the form that is being made. It is thrown away afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from ..core.console import track
from ..engines.buffers import cache_names, decoder_inputs
from ..engines.ort_session import FATAL, guarded, open_session
from .decoder import build_decoder
from .families import DecoderConfig
from .graph import save
from .loss import demo_texts
from .precision import PRECISIONS
from .smoothing import READERS, Smoothing, gather
from .splice import build_splice
from .weight_file import write_decoder
from .weights import EMBEDDING, HEAD, WeightReader

F32 = npt.NDArray[np.float32]

FORM: Final = PRECISIONS["w8"]
LENGTH: Final = 64
"""Tokens of a piece of text: all are equal, for there must be no padding, whose activations nobody will ever see."""
PIECES: Final = 96
BATCH: Final = 16
ALPHA: Final = 0.5
"""Share of the difficulty that goes to the weights, as in SmoothQuant."""
MOST: Final = 16
"""Bound of a shift: channels that are never used have no size to compare."""
TINY: Final = 1e-9


def calibrate(
    reader: WeightReader, tokenizer: Path, scratch: Path, *, threads: int = 1, prompts: Sequence[Sequence[int]] = ()
) -> Smoothing:
    """Shifts of one decoder.

    Args:
        reader: its weights, opened.
        tokenizer: its tokenizer.json.
        scratch: folder in which the decoder that is watched lies for a moment.
        threads: computing threads; more give the same numbers.
        prompts: token ids to read, all of one length; empty: pieces of the packaged documents.

    Raises:
        BundleError: 4001 ONNX Runtime cannot run the decoder.
        EnvironmentFault: 5003 memory, 5004 disk.
    """
    config = reader.config
    given = prompts or pieces(tokenizer, config.bos)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".calibration-") as folder:
        largest = magnitudes(reader, Path(folder), given, threads)
    return Smoothing(config, {site: _shift(reader, site, largest[site]) for site in largest})


def pieces(tokenizer: Path, bos: Sequence[int]) -> list[list[int]]:
    """The packaged documents in pieces of LENGTH tokens, spread over all of them, each after ``bos``."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    found = []
    for text in demo_texts().values():
        ids = loaded.encode(text, add_special_tokens=False).ids
        found += [[*bos, *ids[at : at + LENGTH]] for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return found[:: max(1, len(found) // PIECES)]


def magnitudes(reader: WeightReader, folder: Path, prompts: Sequence[Sequence[int]], threads: int) -> dict[str, F32]:
    """Site -> largest magnitude of each channel that its matrices read, float32 [in]."""
    config = reader.config
    layout = write_decoder(folder / "decoder.safetensors", reader, config, FORM)
    save(build_splice(config, layout, FORM), folder / "splice.onnx")
    watched = _watching(build_decoder(config, layout, FORM))
    splice = open_session(folder / "splice.onnx", threads)
    # It would warn that the cache is copied: here nobody reads it again.
    session = open_session(watched.SerializeToString(), threads, folder, severity=FATAL)
    names = [o.name for o in session.get_outputs() if o.name.endswith(SEEN)]
    found: dict[str, F32] = {}
    with track("calibration", len(prompts), "prompts") as bar:
        for start in range(0, len(prompts), BATCH):
            ids = np.array(prompts[start : start + BATCH], np.int64)
            rows = np.zeros((len(ids), 1, config.hidden_size), np.float32)
            empty = {"input_ids": ids, "row_index": np.full_like(ids, -1), "rows": rows}
            (embeds,) = guarded(partial(splice.run, ["inputs_embeds"], empty), "calibration")
            inputs = _inputs(config, embeds)
            seen = guarded(partial(session.run, names, inputs), "calibration")
            for name, values in zip(names, seen, strict=True):
                site = name.removesuffix(SEEN)
                found[site] = np.maximum(found.get(site, values), values)
            bar.advance(len(ids))
    return found


SEEN: Final = ".seen"


def _watching(model: onnx.ModelProto) -> onnx.ModelProto:
    """The decoder with one output more a site: the largest magnitude of each channel."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        name = node.input[1].removesuffix(".blocks")
        if name != HEAD and READERS[name.rpartition(".")[2]] != name.rpartition(".")[2]:
            continue  # another matrix of its site stands for it
        wide, line = f"{name}.magnitude", helper.make_tensor(f"{name}.line", TensorProto.INT64, [2], [-1, _width(node)])
        model.graph.initializer.append(line)
        nodes += [
            helper.make_node("Reshape", [node.input[0], line.name], [f"{name}.lines"]),
            helper.make_node("Abs", [f"{name}.lines"], [wide]),
            helper.make_node("ReduceMax", [wide, "watch.axis"], [name + SEEN], keepdims=0),
        ]
        model.graph.output.append(helper.make_tensor_value_info(name + SEEN, TensorProto.FLOAT, [_width(node)]))
    model.graph.initializer.append(helper.make_tensor("watch.axis", TensorProto.INT64, [1], [0]))
    model.graph.node.extend(nodes)
    return model


def _width(node: onnx.NodeProto) -> int:
    return next(int(a.i) for a in node.attribute if a.name == "K")


def _inputs(config: DecoderConfig, embeds: F32) -> Mapping[str, npt.NDArray[Any]]:
    """One prefill into an empty cache."""
    batch, length = embeds.shape[:2]
    cache = np.zeros((batch, config.num_kv_heads, length, config.head_dim), np.float32)
    given = decoder_inputs(np.zeros(batch, np.int64), embeds, np.full(batch, length, np.int64))
    return given | dict.fromkeys(cache_names(config.num_layers), cache)


def _shift(reader: WeightReader, site: str, seen: F32) -> npt.NDArray[np.int8]:
    """``log2(seen^a / weights^(1-a))``, rounded; of ``o`` for each value head's channel."""
    weights = _rows(reader, site)
    if site.endswith(".o"):
        seen, weights = gather(seen, reader.config), gather(weights, reader.config)
    used = (seen > TINY) & (weights > TINY)
    with np.errstate(divide="ignore"):
        exact = ALPHA * np.log2(seen) - (1 - ALPHA) * np.log2(weights)
    # Only differences between channels matter: around their middle they stay small.
    middle = np.rint(np.median(exact[used])) if used.any() else 0.0
    return np.clip(np.rint(np.where(used, exact - middle, 0)), -MOST, MOST).astype(np.int8)


def _rows(reader: WeightReader, site: str) -> F32:
    """Largest magnitude in each row of the site's matrices, float32 [in]."""
    layer, _, first = site.rpartition(".")
    names = [EMBEDDING if reader.config.tied else HEAD]
    if site != HEAD:
        names = [f"{layer}.{name}" for name, shared in READERS.items() if shared == first]
    largest = [
        np.abs(block.astype(np.float32)).max(axis=0 if site == HEAD else 1)
        for name in names
        for _, block in reader.blocks(name)
    ]
    found: F32 = np.maximum.reduce(largest)
    return found
