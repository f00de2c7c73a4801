"""Weight files written in blocks: the library's own bytes, every precision's tensors, nothing left out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.export.decoder import rope_tables
from latentwire.export.external import read_layout, write_weights
from latentwire.export.families import read_config
from latentwire.export.precision import PRECISIONS
from latentwire.export.quantize import Stored, convert, kind
from latentwire.export.shards import DTYPES
from latentwire.export.weight_file import WeightFile, stream_table, write_decoder
from latentwire.export.weights import EMBEDDING, WeightReader
from latentwire.models.folder import ModelFolder

NAMES = {numpy: name for name, numpy in DTYPES.items()}


def some_tensors() -> dict[str, Any]:
    """One or two of each dtype, in no order."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 6)).astype(np.float32)
    return {
        "u": values.astype(np.uint8),
        "b16": values.astype(ml_dtypes.bfloat16),
        "z": values,
        "i8": values.astype(np.int8),
        "f8": values.astype(ml_dtypes.float8_e4m3fn),
        "a": values[0],
        "h": values.astype(np.float16),
        "i64": np.arange(3),
        "i32": np.arange(5, dtype=np.int32),
    }


def announced(tensors: dict[str, Any], axis: int = 0) -> list[Stored]:
    return [Stored(n, NAMES[a.dtype.name], a.shape, axis if a.ndim > 1 else 0) for n, a in tensors.items()]


@pytest.mark.parametrize("axis", [0, 1])
def test_same_bytes_as_the_library(axis: int, tmp_path: Path) -> None:
    """Written whole or in blocks of rows or of columns, in any order."""
    tensors = some_tensors()
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "latentwire"})
    with WeightFile(tmp_path / "ours.safetensors", announced(tensors, axis)) as file:
        for name in sorted(tensors):
            array = tensors[name]
            along = axis if array.ndim > 1 else 0
            for at in reversed(range(0, array.shape[along], 2)):
                file.put(name, array[at : at + 2] if along == 0 else array[:, at : at + 2], at)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def write(path: Path, tensors: list[Stored], blocks: list[tuple[str, Any, int]]) -> None:
    with WeightFile(path, tensors) as file:
        for name, values, at in blocks:
            file.put(name, values, at)


def test_hole_is_noticed(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a": np.zeros((4, 2), np.float32), "b": np.zeros(3, np.int8)}
    blocks = [("a", tensors["a"][:3], 0), ("b", tensors["b"], 0)]
    with pytest.raises(ValueError, match=r"1 tensors of w\.safetensors are not fully written: a"):
        write(tmp_path / "w.safetensors", announced(tensors), blocks)


@pytest.mark.parametrize(
    ("values", "at"),
    [
        (np.zeros((4, 2), np.float16), 0),
        (np.zeros((4, 3), np.float32), 0),
        (np.zeros((2, 2), np.float32), 3),
    ],
)
def test_block_that_does_not_fit(values: Any, at: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: "):
        write(tmp_path / "w.safetensors", [Stored("a", "F32", (4, 2))], [("a", values, at)])


def test_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EnvironmentFault) as caught:
        write(tmp_path / "w.safetensors", [Stored("a", "F32", (4, 2))], [("a", np.zeros((4, 2), np.float32), 0)])
    assert caught.value.code == 5004


def test_disk_that_is_too_small(tmp_path: Path) -> None:
    """Known before the first byte is written."""
    with pytest.raises(EnvironmentFault) as caught:
        write(tmp_path / "w.safetensors", [Stored("a", "F32", (1 << 30, 1 << 20))], [])
    assert caught.value.code == 5004
    assert not (tmp_path / "w.safetensors").exists()


@pytest.fixture(params=["llama", "llama-tied", "gemma3"])
def opened(request: pytest.FixtureRequest, tiny: Callable[[str], ModelFolder]) -> ModelFolder:
    return tiny(request.param)


@pytest.mark.parametrize("name", PRECISIONS)
def test_decoder_in_blocks_is_the_decoder_in_one(
    name: str, opened: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a few channels give the very file that whole tensors give through the library."""
    precision, config = PRECISIONS[name], read_config(opened.config, "config.json")
    with WeightReader(opened.weights, config) as reader:
        whole: dict[str, Any] = {}
        for tensor, array in reader:
            whole |= convert(tensor, array, kind(tensor, tied=config.tied), precision)
        for tensor, array in rope_tables(config).items():
            whole |= convert(tensor, array, "float", precision)
        blocks = reader.blocks
        monkeypatch.setattr(reader, "blocks", lambda tensor: blocks(tensor, elements=300))
        layout = write_decoder(tmp_path / "ours.safetensors", reader, config, precision)
    save_file(whole, tmp_path / "theirs.safetensors", metadata={"format": "latentwire"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert layout.places == read_layout(tmp_path / "theirs.safetensors").places
    with safe_open(tmp_path / "ours.safetensors", "numpy") as file:
        assert set(file.keys()) == set(whole)


@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_source_dtypes(source: str, name: str, tiny: Callable[[str], ModelFolder], tmp_path: Path) -> None:
    """A value is rounded once, from what the model's file holds."""
    llm = tiny("qwen2")
    config, precision = read_config(llm.config, "config.json"), PRECISIONS[name]
    tensors = {n: a.astype(source) for n, a in load_file(llm.weights[0]).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with WeightReader([tmp_path / "model.safetensors"], config) as reader:
        write_decoder(tmp_path / "decoder.safetensors", reader, config, precision)
    with safe_open(tmp_path / "decoder.safetensors", "numpy") as found:
        for ours, theirs in (("layer.1.gate", "model.layers.1.mlp.gate_proj.weight"), ("llm.head", "lm_head.weight")):
            want = tensors[theirs].astype(np.float32).astype(precision.dtype)
            np.testing.assert_array_equal(found.get_tensor(ours), want.T if ours != "llm.head" else want)


def test_table_is_scaled_and_narrow(tiny: Callable[[str], ModelFolder], tmp_path: Path) -> None:
    """What Gemma's embedding module returns, in float16."""
    llm = tiny("gemma3")
    config = read_config(llm.config, "config.json")
    table = load_file(llm.weights[0])["model.embed_tokens.weight"]
    with WeightReader(llm.weights, config) as reader:
        layout = stream_table(tmp_path / "t.safetensors", reader, EMBEDDING, "embedding", config.embed_scale)
        want = (table * np.float32(48**0.5)).astype(np.float16)
        np.testing.assert_array_equal(load_file(tmp_path / "t.safetensors")["embedding"], want)
        assert layout == write_weights(tmp_path / "t.safetensors", {"embedding": want})
        with pytest.raises(ModelError) as caught:
            stream_table(tmp_path / "u.safetensors", reader, EMBEDDING, "embedding", 1e9)
    assert (caught.value.code, caught.value.where) == (3206, f"tensor {EMBEDDING}")


def test_value_that_float16_cannot_hold(tiny: Callable[[str], ModelFolder], tmp_path: Path) -> None:
    llm = tiny("llama")
    config = read_config(llm.config, "config.json")
    tensors = load_file(llm.weights[0])
    tensors["model.layers.1.mlp.up_proj.weight"][79, 3] = 7e4
    save_file(tensors, tmp_path / "model.safetensors")
    with WeightReader([tmp_path / "model.safetensors"], config) as reader, pytest.raises(ModelError) as caught:
        write_decoder(tmp_path / "decoder.safetensors", reader, config, PRECISIONS["fp16"])
    assert (caught.value.code, caught.value.where) == (3206, "tensor layer.1.up")
    assert caught.value.fix == "choose --precision bf16 or fp32"
