"""What training an adapter would take: parameters, memory and time, from an LLM's ``config.json`` alone.

The modules are built without storage (torch's ``meta`` device), so counts are exact; memory and time are computed from
them for the largest micro-batch that the config allows, and are meant as an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ..core.errors import ModelError
from ..models.configs import model_config
from .config import Config
from .model import build_adapter, build_encoder

H100_BF16: Final = 989e12
"""Dense bf16 operations a second of an H100 SXM, NVIDIA's data sheet."""
REACHED: Final = 0.35
"""Share of such a peak that is assumed: micro-batches of a few rows do not fill a large GPU."""
OPTIMISER: Final = 16
"""Bytes a trained weight: itself, its gradient and both moments of Adam, float32."""


@dataclass(frozen=True)
class Estimate:
    """Figures for one LLM.

    Attributes:
        llm_parameters: frozen.
        trained_parameters: of the new adapter.
        stored_parameters: the adapter's frozen tables, saved with it.
        encoder_parameters: frozen.
        positions: of the LLM in one micro-batch, at most.
        weights_bytes: LLM, the encoder's own LLM, the former's float32 table for the lookup, encoder, adapter.
        optimiser_bytes: gradients and moments.
        activation_bytes: what the backward pass needs of one micro-batch, logits included.
        flops: operations of the whole training, without measurements.
    """

    llm_parameters: int
    trained_parameters: int
    stored_parameters: int
    encoder_parameters: int
    positions: int
    weights_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    flops: int

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.optimiser_bytes + self.activation_bytes

    def seconds(self, peak: float, reached: float = REACHED) -> float:
        """Time on a device of ``peak`` operations a second, of which a share is reached."""
        return self.flops / (peak * reached)

    def to_json(self) -> dict[str, Any]:
        """All figures; the time is that of an H100."""
        return {**asdict(self), "memory_bytes": self.memory_bytes, "h100_seconds": round(self.seconds(H100_BF16), 1)}


def estimate(config: Config, llm: Mapping[str, Any]) -> Estimate:
    """Figures of training ``config``'s adapter for an LLM.

    Args:
        config: as ``adapt.plan`` makes it: one LLM, only the adapter moves.
        llm: content of its ``config.json``.

    Raises:
        ModelError: 3203 a config that transformers cannot build.
    """
    theirs = read(llm)
    source = _empty(read(model_config(config.encoder_llm)))
    vocab, width = int(theirs.vocab_size), int(theirs.hidden_size)
    with torch.device("meta"):
        adapter = build_adapter(config, vocab, width, foreign=True)
    model, encoder = _empty(theirs), build_encoder(config)
    frozen = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    trained = sum(p.numel() for p in adapter.parameters())
    stored = sum(t.numel() for t in adapter.state_dict().values()) - trained
    own = sum(p.numel() for p in encoder.parameters())
    read_only = frozen + sum(p.numel() for p in source.parameters())
    positions = config.micro_batch * (1 + config.latent_len + config.branch_tokens)
    element = 2 if config.precision == "bf16" else 4
    table = 4 * vocab * width
    micros = config.steps * (config.batch // config.micro_batch)
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    # Forward and backward to the inputs; the weights get no gradient. All branch positions are scored at most.
    per_micro = 4 * (layers * positions + head * config.micro_batch * config.branch_tokens)
    per_micro += 2 * own * config.micro_batch * config.window
    return Estimate(
        llm_parameters=frozen,
        trained_parameters=trained,
        stored_parameters=stored,
        encoder_parameters=own,
        positions=positions,
        weights_bytes=element * read_only + table + 4 * (trained + stored + own),
        optimiser_bytes=(OPTIMISER - 4) * trained,
        activation_bytes=activations(theirs, positions, element)
        + 12 * vocab * config.micro_batch * config.branch_tokens,
        flops=micros * per_micro,
    )


def _empty(config: PreTrainedConfig) -> Any:
    """The model without storage."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def activations(llm: PreTrainedConfig, positions: int, element: int) -> int:
    """Bytes that autograd keeps of the frozen layers for so many positions, in elements of 2 or 4 bytes.

    Each of the two norms of a layer keeps its float32 input and a normalised copy; attention queries, keys and values
    of all heads and its output; the MLP gate, activation and up. A frozen matrix product keeps nothing.
    """
    width, heads = int(llm.hidden_size), int(llm.num_attention_heads)
    size = heads * int(getattr(llm, "head_dim", None) or width // heads)
    kept = 2 * (4 + element) * width + 4 * element * size + 3 * element * int(llm.intermediate_size)
    return positions * int(llm.num_hidden_layers) * kept


def read(llm: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config of a ``config.json``. Raises ModelError 3203."""
    values = dict(llm)
    try:
        found: PreTrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError, TypeError) as e:
        raise ModelError(3203, "unsupported architecture", where="config.json", expected=str(e)) from e
    return found
