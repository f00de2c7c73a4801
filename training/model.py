"""The composition: text ids -> encoder -> Z -> adapter -> rows -> frozen LLM -> logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from ..core.errors import ModelError
from ..models.store import resolve
from .adapter import Adapter, LearnedAdapter, TableAdapter
from .augment import read_before, read_onto
from .calibration import Calibration
from .config import Config
from .encoder import EncoderFromEmbedLayer
from .encoder_bytes import ByteLevelEncoder
from .features.base import Feature
from .fsq import Quantiser
from .injection import Injection
from .lesson import byte_ids
from .llm import KeyValues, LMWrapper, read_config
from .token_codes import TokenQuantiser
from .tree import Tree


@dataclass(frozen=True)
class Scored:
    """Scored positions of one tree: logits f32 [N,V], labels int64 [N], rank int64 [N], row int64 [N]."""

    logits: Tensor
    labels: Tensor
    rank: Tensor
    row: Tensor


def build_encoder(config: Config) -> EncoderFromEmbedLayer | ByteLevelEncoder:
    """An encoder of the config's kind and shapes, weights not yet set.

    Raises:
        ModelError: 3203 the LLM is not of the Llama family.
    """
    encoder: EncoderFromEmbedLayer | ByteLevelEncoder
    if config.encoder_type == "bytes":
        words, salience = config.byte_lexicon, config.salience
        encoder = ByteLevelEncoder(
            config.d_z, config.byte_width, config.byte_layers, words, salience, config.span_type, config.places
        )
    else:
        shape, places = _first_layers(config), config.places
        encoder = EncoderFromEmbedLayer(shape, config.d_z, config.salience, config.span_type, places)
    if config.fsq_profile:
        encoder.quantiser = _quantiser(config)
    return encoder


def _quantiser(config: Config) -> Quantiser | TokenQuantiser:
    if config.quantiser_type == "tokens":
        return TokenQuantiser(config.d_z, read_config(resolve(config.encoder_llm).path).vocab_size, config.places)
    return Quantiser(config.d_z, config.fsq_profile, config.fsq_hidden)


def _first_layers(config: Config) -> LlamaConfig:
    llm = read_config(resolve(config.encoder_llm).path)
    if not isinstance(llm, LlamaConfig):
        raise ModelError(
            3203,
            "cannot start an encoder from this architecture",
            where=config.encoder_llm,
            expected=f"expected llama, got {llm.model_type}",
        )
    llm.num_hidden_layers = config.encoder_layers
    return llm


def build_adapter(config: Config, vocab: int, width: int, foreign: bool = False) -> Adapter | LearnedAdapter:
    """An adapter for an LLM of this vocabulary and hidden size.

    ``foreign``: its embeddings are not those that the encoder's projection knows, so its keys stand in a table.
    """
    rows = config.task_tokens * len(config.tasks)
    adapter: Adapter | LearnedAdapter
    top, tau, hidden, places = config.lookup_top, config.lookup_tau, config.mlp_hidden, config.places
    if config.adapter_type == "linear":
        adapter = Adapter(config.d_z, width, rows)
    elif foreign:
        size = config.lookup_size
        adapter = TableAdapter(
            config.d_z, vocab, width, task_tokens=rows, top=top, tau=tau, hidden=hidden, size=size, places=places
        )
    else:
        adapter = LearnedAdapter(
            config.d_z, vocab, width, task_tokens=rows, top=top, tau=tau, hidden=hidden, places=places
        )
    if config.calibration != "none":
        adapter.calibration = Calibration(config.calibration)
    return adapter


class LatentModel(nn.Module):
    """One encoder, and for each frozen LLM an adapter and its features.

    The LLMs are held outside ``state_dict``: they are frozen, large, and belong to somebody else. ``source`` is the
    one whose tokenizer and embeddings the encoder (or a byte encoder's teacher) uses; it need not be among those that
    answer.
    """

    def __init__(
        self,
        config: Config,
        encoder: nn.Module,
        adapters: dict[str, nn.Module],
        llms: list[LMWrapper],
        source: LMWrapper,
        features: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.adapters = nn.ModuleDict(adapters)
        self.features = nn.ModuleDict(features or {})
        self._llms = llms
        self._source = [source]  # in a list: a module assigned here would become part of this one
        self._teacher: list[EncoderFromEmbedLayer] = []

    @property
    def llms(self) -> list[LMWrapper]:
        """The frozen LLMs, in the config's order."""
        return self._llms

    @property
    def source(self) -> LMWrapper:
        """The LLM that the encoder was made of."""
        return self._source[0]

    @property
    def teacher(self) -> EncoderFromEmbedLayer:
        """The frozen encoder that a byte encoder learns from; there while training only."""
        return self._teacher[0]

    def learn_from(self, teacher: EncoderFromEmbedLayer) -> None:
        """Make this encoder the teacher: frozen, and no part of what is saved."""
        self._teacher = [teacher.eval().requires_grad_(False)]

    def ids(self, text: str, most: int = 0) -> list[int]:
        """What the encoder reads of a text: tokens of ``source``, or bytes; cut to ``most``, default its window."""
        read = byte_ids if self.config.encoder_type == "bytes" else self.source.encode
        return read(text)[: most or self.config.max_tokens]

    def adapter(self, llm: LMWrapper) -> nn.Module:
        """The adapter of one LLM (module names must not hold dots)."""
        return self.adapters[key(llm.name)]

    def features_of(self, llm: LMWrapper) -> dict[str, Feature]:
        """The features of one LLM by kind, in the order in which they act."""
        name = key(llm.name)
        own = self.features[name].items() if name in self.features else ()  # type: ignore[operator]
        return {kind: feature for kind, feature in own if isinstance(feature, Feature)}

    def encode(
        self, input_ids: Tensor, lengths: Tensor, latents: int | None = None, counts: Tensor | None = None
    ) -> Tensor:
        """int64 [B,S], int64 [B] -> latents f32 [B,M,d_z]; ``counts`` int64 [B]: latents of each text, at most M."""
        slots = torch.arange(latents or self.config.latent_len, device=input_ids.device)
        out: Tensor = self.encoder(input_ids, lengths, slots, counts)
        return out

    @property
    def quantiser(self) -> Quantiser | TokenQuantiser | None:
        """The encoder's quantiser, if it was built with one."""
        found = self.encoder.quantiser
        return found if isinstance(found, (Quantiser, TokenQuantiser)) else None

    def quantised(self, z: Tensor, rounded: Tensor | None = None) -> Tensor:
        """Latents f32 [B,M,d_z] as they arrive through codes, where ``rounded`` bool [B] (None: everywhere).

        Without a quantiser they arrive as they are.
        """
        if self.quantiser is None:
            return z
        out: Tensor = self.quantiser(z, z.new_ones(len(z), dtype=torch.bool) if rounded is None else rounded)
        return out

    def read(self, llm: LMWrapper, z: Tensor) -> Injection:
        """What one LLM reads of latents f32 [B,M,d_z]: adapter rows [latents, task rows, front], features."""
        rows: Tensor = self.adapter(llm)(z)
        features = tuple(self.features_of(llm).values())
        behind = rows.shape[1]
        for feature in features:
            rows = feature.rows(rows, z)
        return Injection(rows, z, features, range(behind, rows.shape[1]))

    def task_rows(self, llm: LMWrapper, batch: int) -> Injection:
        """The adapter's task rows alone, f32 [B,K,H]: what stands in a prompt without latents."""
        return Injection(self.adapter(llm).task(batch))  # type: ignore[operator]

    def score(self, llm: LMWrapper, tree: Tree, given: Injection, cache: KeyValues | None = None) -> Scored:
        """Run the frozen LLM over a tree and keep the scored positions only; ``cache`` lets a generation go on."""
        hidden = self.states(llm, tree, given, cache).flatten(0, 1)[tree.scored]
        labels, rank = (t.flatten()[tree.scored] for t in (tree.labels, tree.rank))
        return Scored(llm.logits(hidden), labels, rank, tree.scored // tree.ids.shape[1])

    def states(self, llm: LMWrapper, tree: Tree, given: Injection, cache: KeyValues | None = None) -> Tensor:
        """Last hidden states of the frozen LLM over a tree, f[B,S,H]."""
        embeds = llm.splice(tree.ids, tree.row_index, given.rows)
        slots = given.slots()
        with given.active():
            if slots is not None:
                return (read_onto if slots.onto else read_before)(llm, tree, embeds, slots, cache)
            return llm.hidden(embeds, tree.mask(), tree.positions, cache)


def key(llm: str) -> str:
    """LLM name as a module name."""
    return llm.replace(".", "_").replace("/", "_")
