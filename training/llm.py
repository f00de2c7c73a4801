"""LMWrapper: a frozen Hugging Face causal LM that reads rows through ``inputs_embeds``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from ..core.errors import ModelError
from ..models.store import resolve
from .attention import implementation
from .rotary import Rotary

SUPPORTED = ("llama", "qwen2", "gemma3_text")
"""Model types that were tested; the wrapper itself needs nothing of them."""


@dataclass(frozen=True)
class Special:
    """Token policy of one LLM: ``bos`` goes first (may be empty), any of ``eos`` ends an answer, ``pad`` fills."""

    bos: tuple[int, ...]
    eos: tuple[int, ...]
    pad: int


class KeyValues:
    """What an LLM computed for earlier positions, and which positions those were; slots that others made come first."""

    def __init__(self) -> None:
        # Without the LLM's config no layer forgets what left its window: the mask decides what is read.
        self.store = DynamicCache()
        self._positions: list[Tensor] = []
        self._slots: _Slots | None = None

    def append(self, positions: Tensor) -> Tensor:
        """Note int64 [B,T] new positions; returns all, int64 [B,C+T]."""
        self._positions.append(positions)
        return torch.cat(self._positions, dim=1)

    def begin(self, keys: Tensor, values: Tensor, places: Tensor, counts: Tensor) -> None:
        """Put slots into an empty cache. Positions from the first place on move by as many as a row has slots.

        Args:
            keys: f[B,L,kv_heads,P,D], rotated, in the LLM's dtype.
            values: f[B,L,kv_heads,P,D].
            places: int64 [P], their positions, one after the other.
            counts: int64 [B], slots of each row; nothing reads those behind them.
        """
        for layer in range(keys.shape[1]):
            self.store.update(keys[:, layer], values[:, layer], layer)
        self._positions = [places.expand(len(keys), -1)]
        self._slots = _Slots(places, counts)

    def moved(self, mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """A mask bool [B,1,T,C] with the slots before what it knows of, and where int64 [B,T] positions stand."""
        if self._slots is None:
            return mask, positions
        places, counts = self._slots.places, self._slots.counts[:, None]
        positions = torch.where(positions >= places[0], positions + counts, positions)
        real = torch.arange(len(places), device=counts.device) < counts
        seen = real[:, None, :] & (places < positions[:, :, None])
        return torch.cat([seen[:, None], mask], dim=-1), positions

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Change what every position holds, by f32 [B,L,kv_heads,C,D] each, keys rotated."""
        layers: Any = self.store.layers  # of kinds of cache that have no keys too
        for number, layer in enumerate(layers):
            layer.keys = layer.keys + keys[:, number].to(layer.keys.dtype)
            layer.values = layer.values + values[:, number].to(layer.values.dtype)

    def fold(self, least: int, most: int, first: Tensor, positions: Tensor) -> None:
        """Make one run of two: columns 0..most-1, then columns from ``least`` on once more.

        Args:
            least, most: where the second run began, and the first ended.
            first: bool [B,S-least], columns that count as they are in the first run.
            positions: int64 [B,S], of the result.
        """
        for layer in self.store.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                both = either(held[:, :, least:most], held[:, :, most:], first, 2)
                setattr(layer, name, torch.cat([held[:, :, :least], both], dim=2))
        self._positions = [positions]


@dataclass(frozen=True)
class _Slots:
    places: Tensor
    counts: Tensor


def either(first: Tensor, second: Tensor, choose: Tensor, dim: int) -> Tensor:
    """``first``, filled up with zeros, where ``choose`` bool [B,N] says so along ``dim`` of N; else ``second``."""
    shape = [1] * second.dim()
    shape[0], shape[dim] = choose.shape
    short = list(first.shape)
    short[dim] = second.shape[dim] - first.shape[dim]
    return torch.where(choose.view(shape), torch.cat([first, first.new_zeros(short)], dim), second)


class LMWrapper(nn.Module):
    """One frozen causal LM.

    Args:
        name: known name, folder or ``hf:org/name`` (see ``latentwire models``).
        dtype: dtype of the frozen weights and activations.
        device: where it runs.

    Raises:
        ModelError: 3201-3204 from the store, 3203 for an architecture that is not supported.
    """

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        folder = resolve(name)
        self.name = folder.name
        self.fingerprint = folder.fingerprint
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder.tokenizer_path))
        config = read_config(folder.path)
        # Any: the class is chosen by the config, and the auto class promises nothing about it.
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder.path, config=config, dtype=dtype, attn_implementation=implementation(dtype, device)
        )
        self.model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]  # a decorator hides its own
        self.special = special_tokens(config)
        self.width = int(config.hidden_size)
        self.rotary = Rotary(self.model)

    @property
    def embedding(self) -> Tensor:
        """f32 [V,H], the *output* of the embedding module for every token (Gemma multiplies by sqrt(H) inside it)."""
        module = self.model.get_input_embeddings()
        everything = torch.arange(module.weight.shape[0], device=module.weight.device)
        out: Tensor = module(everything).float()
        return out

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def splice(self, ids: Tensor, row_index: Tensor, rows: Tensor) -> Tensor:
        """Token embeddings where ``row_index`` is -1, adapter rows elsewhere.

        Args:
            ids: int64 [B,T].
            row_index: int64 [B,T].
            rows: f32 [B,R,H].

        Returns:
            f[B,T,H] in the LLM's dtype.
        """
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        picked = rows.gather(1, row_index.clamp(min=0)[..., None].expand(-1, -1, rows.shape[-1]))
        return torch.where((row_index >= 0)[..., None], picked.to(embedded.dtype), embedded)

    def hidden(self, inputs_embeds: Tensor, mask: Tensor, positions: Tensor, cache: KeyValues | None = None) -> Tensor:
        """Last hidden states of new positions, behind those of ``cache``.

        Args:
            inputs_embeds: f[B,T,H].
            mask: bool [B,1,T,C+T], true where a position may be read; C positions stand in the cache, not counting
                slots.
            positions: int64 [B,T], as if there were no slots.
            cache: keys and values of earlier calls, which grows by these; None computes once and keeps nothing.

        Returns:
            f[B,T,H].
        """
        if cache is not None:
            mask, positions = cache.moved(mask, positions)
        seen = positions if cache is None else cache.append(positions)
        out: Tensor = self.model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._masks(mask, positions, seen),
            position_ids=positions,
            past_key_values=None if cache is None else cache.store,
            use_cache=cache is not None,
        ).last_hidden_state
        return out

    def _masks(self, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
        """Gemma keeps one mask per layer type, and its sliding layers read the last ``sliding_window`` positions."""
        types = getattr(self.model.config, "layer_types", None)
        if not types or "sliding_attention" not in types:
            return mask
        near = queries[:, None, :, None] - keys[:, None, None, :] < self.model.config.sliding_window
        return {"full_attention": mask, "sliding_attention": mask & near}

    def logits(self, hidden: Tensor) -> Tensor:
        """f32 [N,V] for gathered states [N,H]: never the whole batch, whose logits may not fit in memory."""
        out: Tensor = self.model.lm_head(hidden).float()
        return out

    @torch.no_grad()
    def generate(self, embeds: list[Tensor], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of prompts given as rows [T_b,H]; EOS and what follows it are left out.

        Prompts are padded on the left, and ``generate`` returns new tokens only when it is given embeddings.
        """
        size = max(e.shape[0] for e in embeds)
        batch = torch.stack([nn.functional.pad(e, (0, 0, size - e.shape[0], 0)) for e in embeds])
        mask = torch.stack([torch.arange(size, device=e.device) >= size - e.shape[0] for e in embeds]).long()
        out = self.model.generate(
            inputs_embeds=batch,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.special.eos),
            pad_token_id=self.special.pad,
        )
        return [_until(row, self.special.eos) for row in out.tolist()]


def _until(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    return next((ids[:i] for i, token in enumerate(ids) if token in eos), ids)


def read_config(folder: Path) -> PreTrainedConfig:
    """The text config of a model folder.

    Raises:
        ModelError: 3203 for an architecture that was never tested.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    if config.model_type not in SUPPORTED:
        raise ModelError(
            3203,
            f"unsupported architecture {config.model_type}",
            where=str(folder),
            expected="expected one of " + ", ".join(SUPPORTED),
        )
    return config


def special_tokens(config: PreTrainedConfig) -> Special:
    """BOS, EOS and PAD policy from a config."""
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    bos = () if config.bos_token_id is None else (int(config.bos_token_id),)
    pad = eos[0] if config.pad_token_id is None else config.pad_token_id
    return Special(bos, tuple(int(i) for i in eos), int(pad))
