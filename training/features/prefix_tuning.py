"""Prefix tuning: rows of each LLM that are the same for every text and stand in front of the latents.

They start as embeddings of the words that open a text, so the LLM reads a prompt that it might have met: unlike the
other features they take room in the prompt, and so cannot start without any effect. Li and Liang (arXiv 2101.00190)
learn keys and values of every layer; these are input rows alone, as in prompt tuning (arXiv 2104.08691).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import Config
from ..llm import LMWrapper
from .base import Exports, Feature

OPENING = "Read the following text carefully:\n"


class PrefixTuning(Feature):
    """``config.prefix_tuning.rows`` rows V of one LLM: f32 [B,R,H] -> f32 [B,R+V,H]; state: ``front`` f32 [V,H]."""

    kind: ClassVar[str] = "prefix_tuning"
    exports: ClassVar[Exports] = "rows"

    def __init__(self, config: Config, llm: LMWrapper) -> None:
        super().__init__()
        ids = llm.encode(OPENING)
        count = config.prefix_tuning.rows
        table = llm.embedding.cpu()
        self.front = nn.Parameter(table[torch.tensor([ids[i % len(ids)] for i in range(count)])].clone())

    def facts(self) -> dict[str, Any]:
        return {"rows": len(self.front)}

    def rows(self, rows: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([rows, self.front[None].expand(rows.shape[0], -1, -1)], dim=1)
