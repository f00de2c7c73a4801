"""What differs between LLM families, as a table, and one LLM's numbers read from its config.json.

In: a Hugging Face config as a dict. Out: ``DecoderConfig``. Knows no graph and no weights. What the builder
cannot express is refused here, by name, before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..core.errors import ModelError
from .rope import Rope, read_rope

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Switches:
    """One family.

    Attributes:
        qkv_bias: query, key and value projections add a bias.
        qk_norm: queries and keys are normalised per head before rotation.
        four_norms: attention and MLP outputs are normalised too.
        norm_offset: added to every norm weight (Gemma stores w - 1).
        activation: of the gated MLP.
        scaled_embedding: token embeddings are multiplied by sqrt(H).
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    four_norms: bool = False
    norm_offset: float = 0.0
    activation: Activation = "silu"
    scaled_embedding: bool = False


FAMILIES: Final[dict[str, Switches]] = {
    "llama": Switches(),
    "qwen2": Switches(qkv_bias=True),
    "gemma3_text": Switches(
        qk_norm=True, four_norms=True, norm_offset=1.0, activation="gelu_tanh", scaled_embedding=True
    ),
}

ACTIVATION_NAMES: Final[dict[str, Activation]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class DecoderConfig:
    """One LLM's numbers.

    Attributes:
        family: key of ``FAMILIES``.
        tied: the head is the embedding table.
        attention_scale: factor on queries.
        ropes: distinct rotations; ``layer_rope[i]`` is the one layer i uses.
        max_positions: longest sequence the graph is exact for.
        bos, eos: token ids; ``bos`` goes first in a prompt, any of ``eos`` ends an answer.
        pad: token id.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    tied: bool
    attention_scale: float
    ropes: tuple[Rope, ...]
    layer_rope: tuple[int, ...]
    max_positions: int
    bos: tuple[int, ...]
    eos: tuple[int, ...]
    pad: int

    @property
    def switches(self) -> Switches:
        """The family's row of the table."""
        return FAMILIES[self.family]

    @property
    def embed_scale(self) -> float:
        """Factor between a row of the table and what the embedding module returns."""
        return float(self.hidden_size) ** 0.5 if self.switches.scaled_embedding else 1.0


def read_config(config: Mapping[str, Any], where: str) -> DecoderConfig:
    """Numbers of a supported LLM.

    Args:
        config: content of config.json.
        where: for messages.

    Raises:
        ModelError: 3203 unsupported architecture or feature, 3204 a key is missing.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise _unsupported(f"architecture {family}", where, ", ".join(FAMILIES))
    try:
        _refuse_features(config, where)
        return _read(config, family, where)
    except KeyError as e:
        raise ModelError(3204, f"config has no {e.args[0]}", where=where) from e


def _read(config: Mapping[str, Any], family: str, where: str) -> DecoderConfig:
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kinds = _layer_kinds(config, layers)
    ropes = {kind: read_rope(config, kind, head_dim, where) for kind in dict.fromkeys(kinds)}
    distinct = tuple(dict.fromkeys(ropes.values()))
    vocab = int(config["vocab_size"])
    bos, eos, pad = (token_ids(config, f"{kind}_token_id", vocab, where) for kind in ("bos", "eos", "pad"))
    return DecoderConfig(
        family=family,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        vocab_size=vocab,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        eps=float(config["rms_norm_eps"]),
        tied=bool(config.get("tie_word_embeddings", family == "gemma3_text")),
        attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        ropes=distinct,
        layer_rope=tuple(distinct.index(ropes[kind]) for kind in kinds),
        max_positions=_max_positions(config, kinds),
        bos=bos[:1],
        eos=eos,
        pad=(*pad, *eos, 0)[0],
    )


def token_ids(config: Mapping[str, Any], key: str, vocab: int, where: str) -> tuple[int, ...]:
    """Special tokens under ``key``: one, a list, or none (null; older configs write -1).

    Raises:
        ModelError: 3204 one lies outside the vocabulary.
    """
    value = config.get(key)
    ids = tuple(int(i) for i in (value if isinstance(value, list) else [] if value is None else [value]) if i != -1)
    if outside := [i for i in ids if not 0 <= i < vocab]:
        raise ModelError(
            3204,
            f"{key} is outside the vocabulary",
            where=where,
            expected=f"expected less than {vocab}, got {outside[0]}",
            fix="fetch the model again, or fix the file",
        )
    return ids


def _layer_kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    """``full_attention`` or ``sliding_attention`` for each layer."""
    if config["model_type"] == "gemma3_text":
        pattern = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
        default = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
        return list(config.get("layer_types") or default)
    return list(config.get("layer_types") or ["full_attention"] * layers)


def _max_positions(config: Mapping[str, Any], kinds: list[str]) -> int:
    """Within the sliding window plain causal attention is exact; the graph has no other."""
    longest = int(config["max_position_embeddings"])
    if "sliding_attention" in kinds:
        longest = min(longest, int(config["sliding_window"]))
    return longest


def _refuse_features(config: Mapping[str, Any], where: str) -> None:
    features = {
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "use_bidirectional_attention": config.get("use_bidirectional_attention"),
        "quantization_config": config.get("quantization_config"),
    }
    for name, value in features.items():
        if value:
            raise _unsupported(f"{name} = {str(value)[:60]}", where, "a config without it")
    activation = config.get("hidden_activation") or config.get("hidden_act")
    wanted = FAMILIES[str(config["model_type"])].activation
    if ACTIVATION_NAMES.get(str(activation)) != wanted:
        raise _unsupported(f"activation {activation}", where, wanted)


def _unsupported(what: str, where: str, expected: str) -> ModelError:
    return ModelError(3203, f"unsupported {what}", where=where, expected=f"supported: {expected}")
