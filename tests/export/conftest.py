"""Tiny random language models of every family, a checkpoint that fits them, and the real one's bundle parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.engines.bundle import AdapterInfo, Bundle, EncoderInfo, Manifest, describe_files
from latentwire.engines.byte_tokenizer import byte_tokenizer
from latentwire.engines.specs import adapter_spec, bundle_specs, encoder_spec
from latentwire.engines.tensors import Dim
from latentwire.export.attention import Flavour
from latentwire.export.decoder import build_decoder
from latentwire.export.export import llm_info
from latentwire.export.external import Layout, Place, external_tensor, write_weights
from latentwire.export.families import read_config
from latentwire.export.graph import Graph, save
from latentwire.export.parts import write_llm
from latentwire.export.precision import PRECISIONS
from latentwire.export.recorded import Recorded
from latentwire.export.splice import build_splice
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import WeightReader
from latentwire.models.folder import ModelFolder, open_folder

D_Z = 6
LATENTS = 5
TASK_TOKENS = 2
VOCAB = 258

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "initializer_range": 0.2,
}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA31, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 24,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": GEMMA_ROPES,
        },
    ),
}
"""Name -> configuration class of transformers and what differs from COMMON."""

MakeModel = Callable[..., ModelFolder]


def write_tiny(folder: Path, kind: str, **changes: Any) -> ModelFolder:
    """A random model, saved by transformers, in ``folder``; norms and biases are random too."""
    import torch
    import transformers

    class_name, values = KINDS[kind]
    config = getattr(transformers, class_name)(**(COMMON | values | changes))
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(), ensure_ascii=False), encoding="utf-8")
    return open_folder(folder, f"tiny-{kind}", folder.parent / "fingerprints")


@pytest.fixture(scope="session")
def make_tiny() -> MakeModel:
    """``make_tiny(folder, kind, **changes)``: ``write_tiny``, for models of other sizes."""
    return write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``tiny(kind)``: the folder of a random model, made once."""
    made: dict[str, ModelFolder] = {}

    def make(kind: str) -> ModelFolder:
        if kind not in made:
            made[kind] = write_tiny(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return make


def decoder_bundle(folder: Path, llm: ModelFolder) -> Bundle:
    """A bundle object over decoder and splice graphs only; nothing is verified."""
    folder.mkdir(parents=True, exist_ok=True)
    info = llm_info(llm, write_llm(llm, folder))
    mark = "00" * 32
    return Bundle(
        folder,
        Manifest(
            files=describe_files(folder),
            encoder=EncoderInfo("none", mark, D_Z, LATENTS, 64),
            llm=info,
            adapter=AdapterInfo("none", TASK_TOKENS, mark),
            graphs=bundle_specs(info, D_Z, info.dtype),
            precision="fp32",
            quality={},
            versions={},
        ),
    )


@pytest.fixture(scope="session")
def make_decoder() -> Callable[[Path, ModelFolder], Bundle]:
    return decoder_bundle


@pytest.fixture(scope="session")
def tiny_decoder(tiny: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """``tiny_decoder(kind)``: its exported decoder, made once; do not change the files."""
    made: dict[str, Bundle] = {}

    def make(kind: str) -> Bundle:
        if kind not in made:
            made[kind] = decoder_bundle(tmp_path_factory.mktemp("decoders") / kind, tiny(kind))
        return made[kind]

    return make


@pytest.fixture(scope="session")
def precise(tiny: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """``precise(kind, precision, flavour, capacity)``: decoder and splice, made once; do not change the files."""
    made: dict[tuple[str, str, Flavour, Dim], Bundle] = {}

    def make(kind: str, name: str, flavour: Flavour = "dual", capacity: Dim = "C") -> Bundle:
        key = (kind, name, flavour, capacity)
        if key not in made:
            made[key] = _precise(tmp_path_factory.mktemp("precise") / "bundle", tiny(kind), *key[1:])
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_precise() -> Callable[..., Bundle]:
    """``make_precise(folder, llm, precision, flavour, capacity)``: the same of any model."""
    return _precise


def _precise(
    folder: Path,
    llm: ModelFolder,
    name: str,
    flavour: Flavour = "dual",
    capacity: Dim = "C",
    scales: float | dict[str, float] = 0.05,
) -> Bundle:
    """``scales``: what a step of each fp8 input is worth; tiny models' activations stay under 20."""
    folder.mkdir()
    config, precision = read_config(llm.config, "config.json"), PRECISIONS[name]
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(folder / "decoder.safetensors", reader, config, precision)
        steps = dict.fromkeys(reader.sources, scales) if isinstance(scales, float) else scales
    save(build_decoder(config, layout, precision, flavour, capacity, steps), folder / "decoder.onnx")
    save(build_splice(config, layout, precision), folder / "splice.onnx")
    info, mark = llm_info(llm, config, precision.dtype), "00" * 32
    parts = (EncoderInfo("none", mark, D_Z, LATENTS, 64), info, AdapterInfo("none", TASK_TOKENS, mark))
    specs, fixed = bundle_specs(info, D_Z, precision.dtype), capacity if isinstance(capacity, int) else 0
    return Bundle(folder, Manifest(describe_files(folder), *parts, specs, name, {}, {}, flavour, fixed))


@pytest.fixture(scope="session")
def byte_prompts() -> list[list[int]]:
    """Sixty prompts of the tiny models, 1 to 40 tokens, BOS first."""
    rng = np.random.default_rng(3)
    return [[256, *rng.integers(0, 256, n).tolist()] for n in rng.integers(1, 40, 60)]


@pytest.fixture(scope="session")
def measured(tiny: MakeModel, byte_prompts: list[list[int]]) -> Callable[[str], Recorded]:
    """``measured(kind)``: what transformers answers, once."""
    from latentwire.export.reference import measure

    made: dict[str, Recorded] = {}

    def make(kind: str) -> Recorded:
        if kind not in made:
            llm = tiny(kind)
            made[kind] = measure(llm.path, llm.fingerprint, byte_prompts, new=8, probes=5)
        return made[kind]

    return make


def fake_layout(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> Layout:
    """Places of tensors in a file that is not written: what a checkpoint's graph says of an LLM's table."""
    return Layout("elsewhere.safetensors", {n: Place(dtype, shape, 0, 0) for n, (dtype, shape) in shapes.items()})


def write_checkpoint(folder: Path, llm: ModelFolder, encoder_llm: ModelFolder | None = None) -> Path:
    """A checkpoint whose encoder takes the first M tokens and whose adapter is linear; random weights."""
    source = encoder_llm or llm
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    hidden, source_hidden = llm.config["hidden_size"], source.config["hidden_size"]
    own = write_weights(
        folder / "encoder.safetensors", {"down": rng.standard_normal((source_hidden, D_Z)).astype(np.float16)}
    )
    save_graph(fake_encoder(own, source.config["vocab_size"], source_hidden), folder / "encoder.onnx")
    own = write_weights(
        folder / f"adapter-{llm.name}.safetensors",
        {
            "up": rng.standard_normal((D_Z, hidden)).astype(np.float16),
            "task": rng.standard_normal((TASK_TOKENS, hidden)).astype(np.float16),
        },
    )
    save_graph(fake_adapter(own, llm.config["vocab_size"], hidden), folder / f"adapter-{llm.name}.onnx")
    meta = {
        "format": "latentwire-checkpoint",
        "version": 1,
        "encoder": {
            "kind": "fake",
            "llm": str(source.path),
            "llm_fingerprint": source.fingerprint,
            "d_z": D_Z,
            "latents": LATENTS,
            "max_tokens": 64,
            "fingerprint": "ab" * 32,
        },
        "adapters": {
            llm.name: {
                "kind": "linear",
                "task_tokens": TASK_TOKENS,
                "llm_fingerprint": llm.fingerprint,
                "fingerprint": "cd" * 32,
            }
        },
        "quality": {"nll": 2.5},
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def save_graph(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def fake_encoder(own: Layout, vocab: int, hidden: int) -> Any:
    from onnx import TensorProto

    g = Graph("encoder", own)
    table = fake_layout({"embedding": ("F16", (vocab, hidden))})
    g.initializers["embedding"] = external_tensor("embedding", table)
    size = g.op("Gather", g.op("Shape", "input_ids"), g.constant("one", np.array(1, np.int64)))
    last = g.op("Sub", size, g.constant("one", np.array(1, np.int64)))
    ids = g.op("Gather", "input_ids", g.op("Min", "slots", last), axis=1)
    states = g.op("Cast", g.op("Gather", "embedding", ids), to=TensorProto.FLOAT)
    z = g.op("MatMul", states, g.op("Cast", g.weight("down"), to=TensorProto.FLOAT))
    axis = g.constant("last", np.array([-1], np.int64))
    valid = g.op("Less", "slots", g.op("Unsqueeze", "lengths", axis))
    mask = g.op("Unsqueeze", g.op("Cast", valid, to=TensorProto.FLOAT), axis)
    g.op("Mul", z, mask, out="latents")
    return g.model(encoder_spec(D_Z))


def fake_adapter(own: Layout, vocab: int, hidden: int) -> Any:
    from onnx import TensorProto

    g = Graph("adapter", own)
    table = fake_layout({"llm.embedding": ("F32", (vocab, hidden))})
    g.initializers["llm.embedding"] = external_tensor("llm.embedding", table)
    rows = g.op("MatMul", "latents", g.op("Cast", g.weight("up"), to=TensorProto.FLOAT))
    words = g.op("Gather", "llm.embedding", g.constant("words", np.arange(TASK_TOKENS)))
    task = g.op("Add", words, g.op("Cast", g.weight("task"), to=TensorProto.FLOAT))
    batch = g.op("Gather", g.op("Shape", "latents"), g.constant("zeroth", np.array([0], np.int64)))
    shape = g.op("Concat", batch, g.constant("task.shape", np.array([TASK_TOKENS, hidden], np.int64)), axis=0)
    g.op("Concat", rows, g.op("Expand", task, shape), out="rows", axis=1)
    return g.model(adapter_spec(D_Z, hidden))


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    return write_checkpoint
