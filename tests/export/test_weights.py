"""Weights: every tensor is wanted and found, has its shape, and is finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentwire.core.errors import BundleError, LatentWireError, ModelError
from latentwire.export.external import external_tensor, point, read_layout, write_weights
from latentwire.export.families import DecoderConfig, read_config
from latentwire.export.weights import WeightReader, read_json, sources
from latentwire.models.folder import ModelFolder


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
