"""What differs from family to family: configuration keys, tensor names, how llama.cpp rearranged the values.

In: GGUF metadata. Out: a Hugging Face ``config.json`` and, for each GGUF tensor, its Hugging Face name and the
step that undoes llama.cpp's change. Knows nothing of files.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` (what was changed) and transformers' configuration classes.
Errors: ModelError 3203 for a family, tensor or key that is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError

Array = npt.NDArray[np.float32]
Undo = Callable[[Array], Array]

SUPPORTED = ("llama", "qwen2", "gemma3_text")
"""``model_type`` values of ``config.json`` that can be exported."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_LLAMA = {**_LAYER, "ffn_norm": "post_attention_layernorm"}
_GEMMA3 = {
    **_LAYER,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Family:
    """One GGUF architecture.

    Attributes:
        architecture: ``general.architecture`` in the file.
        layer_names: GGUF -> Hugging Face name of a layer's tensors, without ``.weight``.
        config: metadata and tied -> ``config.json``.
        undo: GGUF tensor name and configuration -> the step that restores the values, or None.
    """

    architecture: str
    layer_names: Mapping[str, str]
    config: Callable[[Mapping[str, Any], bool], dict[str, Any]]
    undo: Callable[[str, Mapping[str, Any]], Undo | None]


def family_of(metadata: Mapping[str, Any]) -> Family:
    """The family that the file names; ModelError 3203 where it is not supported."""
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ModelError(3203, "unsupported architecture", where=str(architecture), expected=f"one of {known}")


def hf_name(family: Family, gguf_name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; ModelError 3203 if unknown."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z_]+)\.weight", gguf_name)
    layer, stem = found.groups() if found else (None, "")
    name = (_TOP if layer is None else family.layer_names).get(stem)
    if name is None:
        raise ModelError(3203, "unsupported tensor", where=gguf_name, expected=f"a {family.architecture} tensor")
    return f"{name}.weight" if layer is None else f"model.layers.{layer}.{name}.weight"


def unpermute(heads: int) -> Undo:
    """Undo llama.cpp's interleaving of the two rotary halves: [heads * head_dim, H] -> same shape."""

    def undo(rows: Array) -> Array:
        half = rows.shape[0] // heads // 2
        return np.ascontiguousarray(rows.reshape(heads, half, 2, -1).swapaxes(1, 2)).reshape(rows.shape)

    return undo


def _llama_config(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    get = _getter(metadata, "llama")
    heads, hidden = get("attention.head_count"), get("embedding_length")
    theta = _short(get("rope.freq_base", 10000.0))
    return {
        **_common(metadata, get, tied),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": get("rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def _llama_undo(name: str, config: Mapping[str, Any]) -> Undo | None:
    if name.endswith(".attn_q.weight"):
        return unpermute(config["num_attention_heads"])
    if name.endswith(".attn_k.weight"):
        return unpermute(config["num_key_value_heads"])
    return None


def _gemma3_config(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    get = _getter(metadata, "gemma3")
    layers, theta = get("block_count"), _short(get("rope.freq_base", 1_000_000.0))
    # The file says nothing of the two below; llama.cpp fixes them for the family: every sixth layer sees the
    # whole text, the others rotate with base 10,000.
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(layers)]
    local_theta = 10_000.0
    head_dim = get("attention.key_length")
    return {
        **_common(metadata, get, tied),
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head_dim,
        "sliding_window": get("attention.sliding_window"),
        "layer_types": kinds,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": theta,
        "rope_local_base_freq": local_theta,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }


def _gemma3_undo(name: str, config: Mapping[str, Any]) -> Undo | None:
    if not name.endswith("norm.weight"):
        return None
    return lambda weight: weight - np.float32(1)  # llama.cpp stores 1 + w, transformers adds the 1 itself


def _common(metadata: Mapping[str, Any], get: Callable[..., Any], tied: bool) -> dict[str, Any]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")}
    return {
        "attention_dropout": 0.0,
        "bos_token_id": ids["bos"],
        "dtype": "float32",
        "eos_token_id": ids["eos"],
        "hidden_size": get("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "num_attention_heads": get("attention.head_count"),
        "num_hidden_layers": get("block_count"),
        "num_key_value_heads": get("attention.head_count_kv", get("attention.head_count")),
        "pad_token_id": ids["padding"],
        "rms_norm_eps": _short(get("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": get("vocab_size", len(tokens)),
    }


def _getter(metadata: Mapping[str, Any], architecture: str) -> Callable[..., Any]:
    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise ModelError(3203, "GGUF metadata is incomplete", where=f"{architecture}.{key}", expected="a value")
        return value

    return get


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


FAMILIES = (
    Family("llama", _LLAMA, _llama_config, _llama_undo),
    Family("gemma3", _GEMMA3, _gemma3_config, _gemma3_undo),
)
