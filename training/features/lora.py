"""LoRA: low-rank changes of an LLM's matrices, switched on where latents stand in the prompt.

    W x  ->  W x + alpha / rank * B A x        A: f32 [rank,in] random, B: f32 [out,rank] zero

Hu and others (arXiv 2106.09685), through peft's layers. They wrap the LLM's own only while it reads latents, so text,
teachers and the encoder's copy of the first layers never meet them; the LLM itself stays frozen. B starts at zero: a
new LoRA changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...core.errors import ModelError
from ..config import Config
from ..llm import LMWrapper
from .base import Exports, Feature
from .options import LoraOptions

ADAPTER = "latents"


@dataclass(frozen=True)
class _Site:
    """One matrix: number of its layer, module that holds it and name there, the LLM's own and what wraps it."""

    layer: int
    parent: nn.Module
    name: str
    plain: nn.Module
    wrapped: LoraLayer


class Lora(Feature):
    """``config.lora`` of one LLM. State: ``A.LAYER/MATRIX`` and ``B.LAYER/MATRIX``, as ``0/q_proj``.

    Raises:
        ModelError: 3210 more layers than the LLM has.
    """

    kind: ClassVar[str] = "lora"
    exports: ClassVar[Exports] = "weights"

    def __init__(self, config: Config, llm: LMWrapper) -> None:
        super().__init__()
        own = config.lora
        depth = int(llm.model.config.num_hidden_layers)
        if own.layers > depth:
            raise ModelError(
                3210, "bad training option lora.layers", where=llm.name, expected=f"expected at most {depth} layers"
            )
        self._scale = own.alpha / own.rank
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self._sites = _wrap(llm.model, own, range(own.layers or depth))
        for site in self._sites:
            # Whatever the LLM's dtype, what is learned is f32.
            for name, parts in (("A", site.wrapped.lora_A), ("B", site.wrapped.lora_B)):
                getattr(self, name)[f"{site.layer}/{site.name}"] = parts[ADAPTER].float().weight

    def facts(self) -> dict[str, Any]:
        return {"scale": self._scale}

    @contextmanager
    def active(self, latents: Tensor) -> Iterator[None]:
        """The LLM with its matrices changed."""
        try:
            for site in self._sites:
                setattr(site.parent, site.name, site.wrapped)
            yield
        finally:
            for site in self._sites:
                setattr(site.parent, site.name, site.plain)


def _wrap(llm: nn.Module, options: LoraOptions, layers: range) -> list[_Site]:
    """Let peft wrap the matrices, and take what it made out of the LLM again."""
    names = rf"model\.layers\.({'|'.join(map(str, layers))})\.\w+\.({'|'.join(options.targets)})"
    inject_adapter_in_model(LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=names), llm, ADAPTER)
    found = [(name, module) for name, module in llm.named_modules() if isinstance(module, LoraLayer)]
    sites: list[_Site] = []
    for path, wrapped in found:
        parent, _, name = path.rpartition(".")
        site = _Site(int(path.split(".")[2]), llm.get_submodule(parent), name, wrapped.get_base_layer(), wrapped)
        setattr(site.parent, name, site.plain)
        sites.append(site)
    del llm.peft_config  # nothing of peft is left in an LLM that others read text with
    return sites
