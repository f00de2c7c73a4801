"""Checkpoint and LLM to bundle: the pipeline.

    checkpoint, LLM -> decoder, splice -> encoder -> adapter -> manifest -> parity -> BUNDLE

The bundle appears under its name when the last step has passed; until then there is nothing there.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..core.console import message
from ..core.files import atomic_folder, atomic_write_json
from ..engines.bundle import MANIFEST, Bundle, LlmInfo, Manifest, describe_files, read_bundle
from ..engines.specs import adapter_spec, bundle_specs, encoder_spec
from ..models.folder import ModelFolder
from ..models.store import resolve
from .checkpoint import Adapter, Checkpoint, file_stem, read_checkpoint
from .decoder import build_decoder
from .external import Layout, read_layout
from .families import DecoderConfig
from .graph import save
from .model_config import read_llm
from .modules import TABLE, place_module
from .parity import gate
from .precision import PRECISIONS
from .splice import build_splice
from .tables import Table
from .weight_file import stream_table, write_decoder
from .weights import EMBEDDING, WeightReader
from .yardstick import find_reference

PACKAGES: Final = ("latentwire", "onnx", "numpy", "safetensors", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        checkpoint: folder or ``reference``.
        llm: model name, folder or ``hf:org/name``.
        out: bundle folder to make.
        overwrite: replace a folder that is there.
        reference: what parity is measured against: ``auto``, ``transformers`` or ``recorded``.
        threads: computing threads; None: all.
    """

    checkpoint: str
    llm: str
    out: Path
    overwrite: bool = False
    reference: str = "auto"
    threads: int | None = None


def export_bundle(request: Request) -> Bundle:
    """Export, verify and return the bundle.

    Raises:
        ModelError: 3101, 3102 the checkpoint is for other models; 3201-3207 the model; 3220, 3221 the checkpoint.
        BundleError: 4001 graphs that do not fit; 4010 parity failed; 4011 nothing to compare with.
        EnvironmentFault: 5003 memory, 5004 disk, 5008 ``out`` exists.
    """
    checkpoint, llm = read_checkpoint(request.checkpoint), resolve(request.llm)
    adapter = checkpoint.adapter_for(llm)
    yardstick = find_reference(request.reference, llm, checkpoint.path)
    with atomic_folder(request.out, overwrite=request.overwrite) as folder:
        config = write_llm(llm, folder)
        write_encoder(checkpoint, llm, folder)
        write_adapter(checkpoint, adapter, config, folder)
        bundle = seal(checkpoint, adapter, llm_info(llm, config), folder)
        report = gate(bundle, llm, yardstick, threads=request.threads)
        manifest = replace(bundle.manifest, quality={**checkpoint.quality, "parity": report})
        atomic_write_json(folder / MANIFEST, manifest.to_json())
    return read_bundle(request.out, verify="size")


def write_llm(llm: ModelFolder, folder: Path) -> DecoderConfig:
    """Decoder and splice graphs, their one weight file, and the tokenizer."""
    config = read_llm(llm)
    message(f"export: decoder of {llm.name}, {config.num_layers} layers")
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(folder / "decoder.safetensors", reader, config, PRECISIONS["fp32"])
    save(build_decoder(config, layout, PRECISIONS["fp32"]), folder / "decoder.onnx")
    save(build_splice(config, layout, PRECISIONS["fp32"]), folder / "splice.onnx")
    shutil.copyfile(llm.tokenizer_path, folder / "tokenizer.json")
    return config


def write_encoder(checkpoint: Checkpoint, reader: ModelFolder, folder: Path) -> None:
    """Encoder graph, its weights, the frozen table of its model in float16, and that model's tokenizer.

    ``reader``, the LLM that will answer, is often that model; then it need not be known by name here.
    """
    same = reader.fingerprint == checkpoint.encoder_llm_fingerprint
    llm = reader if same else resolve(checkpoint.encoder_llm)
    checkpoint.check_encoder_llm(llm)
    message(f"export: encoder on the embeddings of {llm.name}")
    tables = {TABLE: Table(write_table(llm, folder / "embeddings.safetensors"))}
    graph, weights = checkpoint.file("encoder.onnx"), checkpoint.file("encoder.safetensors")
    place_module(graph, weights, folder / "encoder.onnx", tables, encoder_spec(checkpoint.encoder.d_z))
    shutil.copyfile(llm.tokenizer_path, folder / "encoder_tokenizer.json")


def write_table(llm: ModelFolder, path: Path) -> Layout:
    """What the model's embedding module returns for every token, float16 [V,H]."""
    config = read_llm(llm)
    with WeightReader(llm.weights, config) as reader:
        return stream_table(path, reader, EMBEDDING, TABLE, config.embed_scale)


def write_adapter(checkpoint: Checkpoint, adapter: Adapter, config: DecoderConfig, folder: Path) -> None:
    """Adapter graph and weights; where it needs the LLM's table it reads the decoder's."""
    message(f"export: adapter for {adapter.llm}")
    stem = f"adapter-{file_stem(adapter.llm)}"
    graph, weights = checkpoint.file(f"{stem}.onnx"), checkpoint.file(f"{stem}.safetensors")
    tables = {EMBEDDING: Table(read_layout(folder / "decoder.safetensors"), config.embed_scale)}
    place_module(
        graph, weights, folder / "adapter.onnx", tables, adapter_spec(checkpoint.encoder.d_z, config.hidden_size)
    )


def llm_info(llm: ModelFolder, config: DecoderConfig, dtype: str = "float32") -> LlmInfo:
    """What the manifest says of the LLM."""
    c = config
    sizes = (c.hidden_size, c.vocab_size, c.num_layers, c.num_kv_heads, c.head_dim, c.max_positions)
    return LlmInfo(llm.name, llm.fingerprint, c.family, *sizes, c.bos, c.eos, c.pad, dtype)


def seal(checkpoint: Checkpoint, adapter: Adapter, llm: LlmInfo, folder: Path) -> Bundle:
    """Write the manifest over the files that lie in ``folder``, and read it back as anyone would."""
    manifest = Manifest(
        files=describe_files(folder),
        encoder=checkpoint.encoder,
        llm=llm,
        adapter=adapter.info,
        graphs=bundle_specs(llm, checkpoint.encoder.d_z, llm.dtype),
        precision="fp32",
        quality=checkpoint.quality,
        versions=versions(),
    )
    atomic_write_json(folder / MANIFEST, manifest.to_json())
    return read_bundle(folder, verify="size")


def versions() -> dict[str, Any]:
    """Installed versions of what took part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
