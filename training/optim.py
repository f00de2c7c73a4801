"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from .config import Config

PROJECTIONS = ("projection.weight", "key.weight")
"""Closed-form projections: they start right, so they move slowly."""


def schedule(step: int, config: Config) -> float:
    """Factor on the peak learning rate: linear warm-up, cosine to ``lr_floor``. A function of steps, never of time."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, config.steps - warm))
    return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))


def main_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over everything but the task rows, which the format stage has trained."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith("task.weight")]
    rates: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rates.setdefault((_rate(name, config), config.weight_decay if parameter.ndim > 1 else 0.0), []).append(
            parameter
        )
    groups = [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in rates.items()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=True)


def format_optimizer(rows: Iterable[nn.Parameter], config: Config) -> torch.optim.AdamW:
    """AdamW over the task rows alone."""
    return torch.optim.AdamW(rows, lr=config.lr_task, betas=(0.9, 0.95), weight_decay=0.0)


def _rate(name: str, config: Config) -> float:
    if name.endswith(PROJECTIONS):
        return config.lr_projection
    return config.lr_copied if ".layers." in name or name.endswith("encoder.norm.weight") else config.lr_new


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
