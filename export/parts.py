"""The files of a bundle, part by part: decoder and splice, encoder, adapter.

In: a checkpoint, a language model, a target. Out: files in a folder under construction. What they are worth is
decided elsewhere (``parity``), and what the manifest says of them too (``export``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..core.console import message
from ..core.files import atomic_write_json
from ..engines.byte_tokenizer import byte_tokenizer
from ..engines.specs import adapter_spec, encoder_spec
from ..models.folder import ModelFolder
from ..models.store import resolve
from .calibration import calibrate
from .checkpoint import Adapter, Checkpoint, file_stem
from .cross import write_cross
from .cross_source import CrossSource
from .decoder import build_decoder
from .encoder_int8 import narrow
from .external import Layout, read_layout
from .families import DecoderConfig
from .features import write_features
from .graph import save
from .lookup import quicken
from .lora import Lora
from .model_config import read_llm
from .modules import TABLE, place_module
from .splice import build_splice
from .tables import Table
from .target import PLAIN, Target
from .weight_file import stream_table, write_decoder
from .weights import EMBEDDING, WeightReader

BYTES: Final = "bytes"
"""Kind of an encoder that reads UTF-8 bytes, as training calls it."""


def write_llm(
    llm: ModelFolder,
    folder: Path,
    target: Target = PLAIN,
    scales: Mapping[str, float] | None = None,
    lora: Lora | None = None,
    cross: CrossSource | None = None,
) -> DecoderConfig:
    """Decoder and splice graphs, their one weight file, and the tokenizer; with ``cross`` its graph and weights too.

    ``scales``: of an fp8 target. ``lora``: changes the weights. ``cross``: of layers that read latents.
    """
    config = read_llm(llm)
    form = target.precision
    message(f"export: decoder of {llm.name}, {config.num_layers} layers, {form.name}")
    with WeightReader(llm.weights, config, lora) as reader:
        smoothing = calibrate(reader, llm.tokenizer_path, folder) if form.matmul == "int8" else None
        layout = write_decoder(folder / "decoder.safetensors", reader, config, form, smoothing)
    read = cross.place(folder, config.hidden_size, config.num_layers) if cross else None
    model = build_decoder(config, layout, form, target.flavour, target.capacity or "C", scales, read)
    save(model, folder / "decoder.onnx")
    if read:
        write_cross(read, folder)
    save(build_splice(config, layout, form), folder / "splice.onnx")
    shutil.copyfile(llm.tokenizer_path, folder / "tokenizer.json")
    return config


def write_encoder(checkpoint: Checkpoint, reader: ModelFolder, folder: Path, target: Target = PLAIN) -> None:
    """Encoder graph, its weights, the frozen table of its model in float16, and that model's tokenizer.

    ``reader``, the LLM that will answer, is often that model; then it need not be known by name here. An encoder of
    bytes has no model, no table, and a tokenizer whose tokens are the 256 bytes.
    """
    if checkpoint.encoder.kind == BYTES:
        message("export: encoder of bytes")
        graph, weights = checkpoint.file("encoder.onnx"), checkpoint.file("encoder.safetensors")
        place_module(graph, weights, folder / "encoder.onnx", {}, encoder_spec(checkpoint.encoder.d_z))
        _narrow(folder, target)
        atomic_write_json(folder / "encoder_tokenizer.json", byte_tokenizer())
        return
    same = reader.fingerprint == checkpoint.encoder_llm_fingerprint
    llm = reader if same else resolve(checkpoint.encoder_llm)
    checkpoint.check_encoder_llm(llm)
    message(f"export: encoder on the embeddings of {llm.name}")
    tables = {TABLE: Table(write_table(llm, folder / "embeddings.safetensors"))}
    graph, weights = checkpoint.file("encoder.onnx"), checkpoint.file("encoder.safetensors")
    place_module(graph, weights, folder / "encoder.onnx", tables, encoder_spec(checkpoint.encoder.d_z))
    _narrow(folder, target)
    shutil.copyfile(llm.tokenizer_path, folder / "encoder_tokenizer.json")


def _narrow(folder: Path, target: Target) -> None:
    if target.precision.matmul == "int8":
        narrow(folder)


def write_table(llm: ModelFolder, path: Path) -> Layout:
    """What the model's embedding module returns for every token, float16 [V,H]."""
    config = read_llm(llm)
    with WeightReader(llm.weights, config) as reader:
        return stream_table(path, reader, EMBEDDING, TABLE, config.embed_scale)


def write_adapter(
    checkpoint: Checkpoint, adapter: Adapter, config: DecoderConfig, folder: Path, target: Target = PLAIN
) -> None:
    """Adapter graph and weights, and the weights of features beside it.

    Where it needs the LLM's table it reads the decoder's, as the LLM itself does.
    """
    message(f"export: adapter for {adapter.llm}")
    stem = f"adapter-{file_stem(adapter.llm)}"
    graph, weights = checkpoint.file(f"{stem}.onnx"), checkpoint.file(f"{stem}.safetensors")
    tables = {EMBEDDING: Table(read_layout(folder / "decoder.safetensors"), config.embed_scale, target.precision.dtype)}
    spec = adapter_spec(checkpoint.encoder.d_z, config.hidden_size)
    features = write_features(checkpoint, adapter, folder)
    place_module(graph, weights, folder / "adapter.onnx", tables, spec, features)
    if target.precision.matmul == "int8":
        quicken(folder, checkpoint.encoder.d_z)
