"""Configs: numbers are read as transformers reads them; what the builder cannot express is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import ModelError
from latentwire.export.families import read_config
from latentwire.export.model_config import read_llm
from latentwire.export.rope import Llama3Scaling, Rope, inverse_frequencies, tables
from latentwire.models.folder import ModelFolder, open_folder

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
GEMMA: dict[str, Any] = LLAMA | {
    "model_type": "gemma3_text",
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "num_hidden_layers": 7,
}


def test_llama_numbers() -> None:
    config = read_config(LLAMA, "config.json")
    assert (config.head_dim, config.attention_scale, config.embed_scale) == (16, 0.25, 1.0)
    assert (config.bos, config.eos, config.pad) == ((1,), (2, 3), 2)
    assert config.ropes == (Rope(10000.0, 16),)
    assert config.layer_rope == (0, 0)


def test_gemma_numbers() -> None:
    """Two rotations, every sixth layer full; the window bounds what plain causal attention is exact for."""
    config = read_config(GEMMA, "config.json")
    assert config.layer_rope == (0, 0, 0, 0, 0, 1, 0)
    assert [r.theta for r in config.ropes] == [1e4, 1e6]
    assert (config.max_positions, config.embed_scale, config.attention_scale) == (512, 8.0, 1 / 16)
    assert config.tied is False


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "architecture mamba"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "relu"}, "activation relu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary embedding yarn"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "part 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(LLAMA | changes, "config.json")
    assert caught.value.code == 3203
    assert named in caught.value.what
    assert caught.value.expected.startswith("supported: ")


def test_missing_key() -> None:
    with pytest.raises(ModelError) as caught:
        read_config({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "config.json")
    assert (caught.value.code, caught.value.what) == (3204, "config has no vocab_size")


def test_rope_forms_of_transformers_4_and_5_agree() -> None:
    old = LLAMA | {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }
    new = LLAMA | {"rope_parameters": {"rope_theta": 5e5, **old["rope_scaling"]}}
    del new["rope_theta"]
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert read_config(old, "c").ropes == read_config(new, "c").ropes == (Rope(5e5, 16, llama3=scaling),)


def test_linear_scaling_divides_positions() -> None:
    plain, half = Rope(1e4, 16), Rope(1e4, 16, linear_factor=2.0)
    np.testing.assert_allclose(tables(half, 9)[0][8], tables(plain, 9)[0][4], rtol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "llama-3.1", "gemma3"])
def test_frequencies_are_those_of_transformers(kind: str, tiny: Callable[[str], ModelFolder]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder: Path = tiny(kind).path
    rotary = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).model.rotary_emb
    theirs = {n.removesuffix("inv_freq"): b.numpy() for n, b in rotary.named_buffers() if n.endswith("inv_freq")}
    theirs = {n: a for n, a in theirs.items() if "original" not in n}
    ours = read_config(tiny(kind).config, "c").ropes
    assert len(theirs) == len(ours)
    names = {"full_attention_": 1e6, "sliding_attention_": 1e4}
    for name, want in theirs.items():
        rope = next(r for r in ours if len(ours) == 1 or r.theta == names[name])
        np.testing.assert_allclose(inverse_frequencies(rope), want, rtol=3e-7)


@pytest.fixture
def copied(tiny: Callable[[str], ModelFolder], tmp_path: Path) -> Path:
    """A tiny Llama's folder, to be changed; eos is 257."""
    return Path(shutil.copytree(tiny("llama").path, tmp_path / "copy"))


def read_copy(folder: Path, generation: object) -> Any:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_llm(open_folder(folder, "copy", folder.parent))


@pytest.mark.parametrize(
    ("generation", "eos"),
    [
        ({"eos_token_id": [5, 257, 9]}, (257, 5, 9)),
        ({"eos_token_id": 3}, (257, 3)),
        ({"eos_token_id": None}, (257,)),
        ({}, (257,)),
    ],
)
def test_generation_config_ends_answers_too(generation: object, eos: tuple[int, ...], copied: Path) -> None:
    config = read_copy(copied, generation)
    assert (config.eos, config.pad) == (eos, 257)


def test_folder_without_generation_config(copied: Path) -> None:
    (copied / "generation_config.json").unlink()
    llm = open_folder(copied, "copy", copied.parent)
    assert read_llm(llm) == read_config(llm.config, "c")


@pytest.mark.parametrize("generation", [[1], {"eos_token_id": [257, 258]}])
def test_bad_generation_config_is_named(generation: object, copied: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_copy(copied, generation)
    assert (caught.value.code, caught.value.where) == (3204, str(copied / "generation_config.json"))


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [100, -2, [2, 100]])
def test_special_token_outside_the_vocabulary(key: str, value: object) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(LLAMA | {key: value}, "config.json")
    assert (caught.value.code, caught.value.what) == (3204, f"{key} is outside the vocabulary")


def test_absent_pad_token() -> None:
    assert read_config(LLAMA | {"pad_token_id": -1}, "c").pad == 2
    assert read_config(LLAMA | {"pad_token_id": 7}, "c").pad == 7
    assert read_config(LLAMA | {"eos_token_id": None}, "c").pad == 0


@pytest.mark.parametrize("kind", ["llama", "llama-3.1", "qwen2", "qwen2-tied", "gemma3"])
def test_numbers_are_those_of_optimum(kind: str, tiny: Callable[[str], ModelFolder]) -> None:
    """An independent reader of the same files. It knows ``gemma3_text`` by the class that fits, not by name."""
    utils = pytest.importorskip("optimum.utils", reason="optimum is not installed")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny(kind).path)
    reader = utils.NormalizedTextConfigWithGQA
    if kind != "gemma3":
        reader = utils.NormalizedConfigManager.get_normalized_config_class(config.model_type)
    theirs, ours = reader(config), read_config(tiny(kind).config, "c")
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }
    assert {n: getattr(theirs, n) for n in names} == {n: getattr(ours, o) for n, o in names.items()}
    # Where a config names no head size, neither does optimum.
    head_dim = getattr(config, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert head_dim == ours.head_dim
