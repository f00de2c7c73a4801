"""Optimiser groups, what a stage trains, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from .config import Config
from .stages import Stage

PROJECTIONS = ("projection.weight", "key.weight")
"""Closed-form projections: they start right, so they move slowly."""
TASK_DECAY = -1.0
"""Marks the group of the task rows, which do not decay, beside the others that do not."""


def schedule(step: int, config: Config) -> float:
    """Factor on the peak learning rate: linear warm-up, cosine to ``lr_floor``. A function of steps, never of time."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, config.steps - warm))
    return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))


def main_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over everything but the task rows, which the format stage has trained; they come last where a stage wants
    them too. Adam's state is stored in this order."""
    rates: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if group_of(name) != "task" and parameter.requires_grad:
            rate = _rate(name, config.encoder_type == "embed_layer")
            key = (rate, float(getattr(config, rate)), config.weight_decay if parameter.ndim > 1 else 0.0)
            rates.setdefault(key, []).append(parameter)
    if any("task" in span.stage.train for span in config.spans()):
        rates["lr_new", config.lr_new, TASK_DECAY] = [p for n, p in model.named_parameters() if group_of(n) == "task"]
    groups = [
        {"params": p, "rate": rate, "lr": lr, "peak": lr, "weight_decay": max(0.0, decay)}
        for (rate, lr, decay), p in rates.items()
    ]
    on_gpu = any(p.is_cuda for p in model.parameters())
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=not on_gpu, fused=on_gpu)


def group_of(name: str) -> str:
    """Which of ``stages.GROUPS`` a parameter of the model belongs to, by its name."""
    if name.endswith("task.weight"):
        return "task"
    if name.startswith("encoder.quantiser."):
        return "quantiser"
    first = name.split(".", 1)[0]
    return first if first in ("encoder", "adapters") else "features"


def set_trained(model: nn.Module, stage: Stage) -> None:
    """Parameters outside the stage's groups get no gradient, and so no step and no decay."""
    for name, parameter in model.named_parameters():
        wanted = group_of(name) in stage.train
        if parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
            parameter.grad = None


def format_optimizer(rows: Iterable[nn.Parameter], config: Config) -> torch.optim.AdamW:
    """AdamW over the task rows alone."""
    return torch.optim.AdamW(rows, lr=config.lr_task, betas=(0.9, 0.95), weight_decay=0.0)


def _rate(name: str, copied: bool) -> str:
    """The config option that gives a parameter's peak rate; ``copied``: the encoder's layers are an LLM's."""
    if group_of(name) == "features":
        return "lr_new"
    if name.endswith(PROJECTIONS):
        return "lr_projection"
    old = copied and (".layers." in name or name.endswith("encoder.norm.weight"))
    return "lr_copied" if old else "lr_new"


def set_rate(optimizer: torch.optim.Optimizer, factor: float, stage: Stage) -> None:
    """Scale every group's peak rate by the schedule's factor and by the stage's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor * stage.lr * getattr(stage, group["rate"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as named tensors, in parameter order."""
    out: dict[str, Tensor] = {}
    for index, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            out[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return out


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of ``moments`` back.

    Raises:
        ModelError: 3223 it belongs to parameters of other shapes.
    """
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for label, value in tensors.items():
        index, _, name = label.partition(".")
        parameter = parameters[int(index)] if int(index) < len(parameters) else None
        if parameter is None or (name != "step" and value.shape != parameter.shape):
            raise ModelError(
                3223,
                f"optimiser state {label} does not fit",
                expected=f"expected shape {None if parameter is None else tuple(parameter.shape)}, "
                f"got {tuple(value.shape)}",
            )
        fused = bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter][name] = value if name == "step" and not fused else value.to(parameter.device)
