"""Weights: every tensor is wanted and found, has its shape, and is finite."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentwire.core.errors import BundleError, LatentWireError, ModelError
from latentwire.engines.bundle import AdapterInfo, Bundle, EncoderInfo, Manifest, describe_files
from latentwire.engines.specs import bundle_specs
from latentwire.export.export import llm_info
from latentwire.export.external import external_tensor, point, read_layout, write_weights
from latentwire.export.families import DecoderConfig, read_config
from latentwire.export.gate_weights import check_weights
from latentwire.export.model_config import read_json
from latentwire.export.precision import PRECISIONS
from latentwire.export.shards import DTYPES, Shards
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import WeightReader, sources
from latentwire.models.folder import ModelFolder, open_folder


@pytest.fixture
def opened(tiny: Callable[[str], ModelFolder], tmp_path: Path) -> tuple[dict[str, Any], DecoderConfig, Path]:
    """Tensors of a tiny Llama as a dictionary, its config, and where to write a changed copy."""
    llm = tiny("llama")
    return load_file(llm.weights[0]), read_config(llm.config, "config.json"), tmp_path / "model.safetensors"


def read_all(path: Path, config: DecoderConfig) -> dict[str, Any]:
    with WeightReader([path], config) as reader:
        return dict(reader)


def fails(path: Path, config: DecoderConfig) -> LatentWireError:
    with pytest.raises(ModelError) as caught:
        read_all(path, config)
    return caught.value


def test_layout_of_the_graph(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    save_file(tensors, path)
    found = read_all(path, config)
    assert set(found) == set(sources(config))
    np.testing.assert_array_equal(found["layer.0.q"], tensors["model.layers.0.self_attn.q_proj.weight"].T)
    np.testing.assert_array_equal(found["llm.embedding"], tensors["model.embed_tokens.weight"])
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in found.values())


def test_gemma_norms_are_offset(tiny: Callable[[str], ModelFolder]) -> None:
    llm = tiny("gemma3")
    stored = load_file(llm.weights[0])
    found = read_all(llm.weights[0], read_config(llm.config, "config.json"))
    np.testing.assert_array_equal(found["layer.1.q_norm"], stored["model.layers.1.self_attn.q_norm.weight"] + 1)
    np.testing.assert_array_equal(found["llm.norm"], stored["model.norm.weight"] + 1)


def test_bfloat16_is_read_exactly(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    half = {name: a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()}
    save_file(half, path)
    found = read_all(path, config)
    np.testing.assert_array_equal(found["llm.norm"], half["model.norm.weight"].astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_parts_of_a_tensor(dtype: str, axis: int, tmp_path: Path) -> None:
    """Rows or columns, of every dtype a bundle has; the last part may be shorter."""
    want = np.arange(-60, 60).reshape(6, 20).astype(dtype)
    save_file({"other": np.ones(3, np.float32), "a": want}, tmp_path / "w.safetensors")
    with Shards([tmp_path / "w.safetensors"]) as shards:
        parts = [shards.part("a", axis, at, 4) for at in range(0, want.shape[axis], 4)]
    found = np.concatenate(parts, axis)
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found.view(np.uint8), want.view(np.uint8))


def test_shards_are_one_model(opened: tuple[dict[str, Any], DecoderConfig, Path], tmp_path: Path) -> None:
    tensors, config, _ = opened
    names = sorted(tensors)
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({n: tensors[n] for n in names[::2]}, parts[0])
    save_file({n: tensors[n] for n in names[1::2]}, parts[1])
    with WeightReader(parts, config) as reader:
        assert len(dict(reader)) == len(sources(config))


def test_missing_tensor(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    error = fails(path, config)
    assert error.code == 3207
    assert "model.layers.1.mlp.up_proj.weight" in error.where


def test_extra_tensor(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    """A bias the family does not have: ignoring it would give a wrong model."""
    tensors, config, path = opened
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)}, path)
    error = fails(path, config)
    assert error.code == 3207
    assert "q_proj.bias" in error.where
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}, path)
    read_all(path, config)


def test_wrong_vocabulary_size(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1]
    save_file(tensors, path)
    error = fails(path, config)
    assert error.code == 3207
    assert error.expected == "expected it [258, 48], got [257, 48]"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(opened: tuple[dict[str, Any], DecoderConfig, Path], value: float) -> None:
    tensors, config, path = opened
    tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = value
    save_file(tensors, path)
    error = fails(path, config)
    assert error.code == 3206
    assert error.where == "tensor model.layers.2.mlp.down_proj.weight"


def test_safetensors_and_onnx_read_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {"b": rng.standard_normal((3, 5)).astype(np.float32), "a": np.arange(7, dtype=np.float16)}
    layout = write_weights(tmp_path / "w.safetensors", tensors)
    data = (tmp_path / "w.safetensors").read_bytes()
    for name, array in tensors.items():
        place = layout.places[name]
        assert data[place.offset : place.offset + place.length] == array.tobytes()


def test_pointing_at_nothing_or_at_another_shape(tmp_path: Path) -> None:
    layout = write_weights(tmp_path / "w.safetensors", {"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(BundleError) as caught:
        external_tensor("b", layout)
    assert caught.value.code == 4008
    tensor = external_tensor("a", layout)
    tensor.dims[0] = 5
    with pytest.raises(BundleError) as caught:
        point(tensor, layout, "a")
    assert caught.value.code == 4001


def test_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    with pytest.raises(BundleError) as caught:
        read_layout(path)
    assert caught.value.code == 4001


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_unreadable_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ModelError) as caught:
        read_json(path)
    assert caught.value.code == 3204
    assert json.dumps(str(path))[1:-1] in str(caught.value)


def test_blocks_are_the_tensor(tiny: Callable[[str], ModelFolder]) -> None:
    """Columns of a matrix, rows of the rest; a block of one channel at the least."""
    llm = tiny("gemma3")
    config = read_config(llm.config, "config.json")
    with WeightReader(llm.weights, config) as reader:
        for name, whole in reader:
            axis = 1 if reader.sources[name].transpose else 0
            for elements in (1, 500):
                parts = list(reader.blocks(name, elements))
                assert [at for at, _ in parts] == np.cumsum([0, *(p.shape[axis] for _, p in parts[:-1])]).tolist()
                np.testing.assert_array_equal(np.concatenate([p for _, p in parts], axis), whole)
            assert whole.shape == reader.shape(name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_in_any_dtype(dtype: Any, value: float, opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    tensors = {name: a.astype(dtype) for name, a in tensors.items()}
    tensors["model.embed_tokens.weight"][257, 47] = value
    save_file(tensors, path)
    error = fails(path, config)
    assert (error.code, error.where) == (3206, "tensor model.embed_tokens.weight")


@pytest.mark.parametrize("cut", [1, 100_000, 10**9])
def test_shard_that_was_cut(cut: int, opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    """Off by one byte, without its end, empty: the file is named."""
    tensors, config, path = opened
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
    error = fails(path, config)
    assert (error.code, error.what, error.where) == (3206, "cannot read a weight file", str(path))


def test_shard_that_shrinks_while_it_is_read(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    save_file(tensors, path)
    with WeightReader([path], config) as reader:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(ModelError) as caught:
            dict(reader)
    assert (caught.value.code, caught.value.where) == (3206, str(path))
    assert caught.value.expected.endswith(" ends early")


def test_missing_shard(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    _, config, path = opened
    error = fails(path, config)
    assert (error.code, error.where) == (3204, str(path))


def test_tensor_in_two_shards(opened: tuple[dict[str, Any], DecoderConfig, Path], tmp_path: Path) -> None:
    """Which of the two would be right is not for us to guess."""
    tensors, config, path = opened
    save_file(tensors, path)
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError) as caught, WeightReader([path, tmp_path / "b.safetensors"], config):
        pass
    assert caught.value.code == 3207
    assert caught.value.where == f"tensor model.norm.weight in {tmp_path / 'b.safetensors'}"


def test_quantised_weights(opened: tuple[dict[str, Any], DecoderConfig, Path]) -> None:
    tensors, config, path = opened
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(np.int8)}, path)
    error = fails(path, config)
    assert (error.code, error.what, error.where) == (3203, "unsupported weight dtype I8", f"tensor {name} in {path}")


def sharded(tensors: dict[str, Any], folder: Path, index: dict[str, str]) -> None:
    """A model folder of two weight files and the index ``index``."""
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / "model-1.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, folder / "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.fixture
def copied(tiny: Callable[[str], ModelFolder], tmp_path: Path) -> Path:
    """A tiny Llama's folder without its weights."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny("llama").path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_index_naming_a_missing_file(opened: tuple[dict[str, Any], DecoderConfig, Path], copied: Path) -> None:
    tensors = opened[0]
    sharded(tensors, copied, dict.fromkeys(tensors, "model-1.safetensors") | {"lm_head.weight": "model-3.safetensors"})
    with pytest.raises(ModelError) as caught:
        open_folder(copied, "copy", copied.parent)
    assert (caught.value.code, caught.value.where) == (3204, str(copied / "model-3.safetensors"))


def test_index_naming_the_wrong_file(opened: tuple[dict[str, Any], DecoderConfig, Path], copied: Path) -> None:
    """Names are taken from the files themselves, so an index that leaves a file out leaves tensors out."""
    tensors, config, _ = opened
    sharded(tensors, copied, dict.fromkeys(tensors, "model-1.safetensors"))
    llm = open_folder(copied, "copy", copied.parent)
    with pytest.raises(ModelError) as caught, WeightReader(llm.weights, config):
        pass
    missing = sorted(tensors)[1]
    assert (caught.value.code, caught.value.where) == (3207, f"tensor {missing} in {copied}")


def test_pickled_weights(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(BundleError) as caught:
        open_folder(copied, "copy", copied.parent)
    assert caught.value.code == 4005
    assert "pytorch_model.bin" in caught.value.expected


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_gate_reads_float8(kind: str, tiny: Callable[[str], ModelFolder], tmp_path: Path) -> None:
    """The safetensors library's numpy side does not; a value two steps off is found."""
    llm, folder = tiny(kind), tmp_path / "bundle"
    config, path = read_config(llm.config, "config.json"), folder / "decoder.safetensors"
    folder.mkdir()
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(path, reader, config, PRECISIONS["fp8"])
    info, mark = llm_info(llm, config, "float16"), "00" * 32
    parts = (EncoderInfo("none", mark, 6, 5, 64), info, AdapterInfo("none", 2, mark))
    files = describe_files(folder)
    bundle = Bundle(folder, Manifest(files, *parts, bundle_specs(info, 6, info.dtype), "fp8", {}, {}))
    assert check_weights(bundle, llm).verdict == "passed"

    place = layout.places["layer.1.up.fp8"]
    data = bytearray(path.read_bytes())
    data[place.offset] += 2 if data[place.offset] & 0x7F < 0x70 else -2
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        check_weights(bundle, llm)
    assert caught.value.code == 4010
    assert "layer.1.up" in caught.value.what
