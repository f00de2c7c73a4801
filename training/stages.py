"""The curriculum: stages of a run, and which of them a step belongs to. Steps decide everything, time nothing.

``[[stage]]`` tables of the config name stages in order. Their steps come from ``steps`` or from ``share`` of the
run's; without any table the run is one stage with the config's own options. Options of a stage that are left out
are the config's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..core.errors import ModelError
from .bundles import BUNDLES

GROUPS: Final = ("encoder", "quantiser", "adapters", "task", "features")
"""What a stage can train: the encoder, its quantiser, the adapters without their task rows, the task rows, features
beside them."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: shown in the log.
        steps: optimiser steps; 0: see ``share``.
        share: share of the run's steps.
        bundle: loss bundle; empty: the config's.
        prose_share, reconstruct_share, continue_share, example_share: data mix; below 0: the config's.
        fsq_share: share of samples that pass the quantiser, all through the stage; below 0: by the config's ramp.
        crops: passages are cut to these many encoder tokens, one size after the other, in equal parts of the stage;
            empty: to ``max_tokens``. Contexts of questions are never cut shorter: the answer might be lost.
        latent_choices: M of each micro-batch is one of these; empty: the config's.
        train: which of ``GROUPS`` move.
        llms: losses of these LLMs only; empty: of all. The adapters of the others stand still.
        lr: factor on every learning rate.
        lr_new, lr_copied, lr_projection: further factors on the rates of that name.
    """

    name: str
    steps: int = 0
    share: float = 0.0
    bundle: str = ""
    prose_share: float = -1.0
    reconstruct_share: float = -1.0
    continue_share: float = -1.0
    example_share: float = -1.0
    fsq_share: float = -1.0
    crops: tuple[int, ...] = ()
    latent_choices: tuple[int | str, ...] = ()
    train: tuple[str, ...] = ("encoder", "quantiser", "adapters", "features")
    llms: tuple[str, ...] = ()
    lr: float = 1.0
    lr_new: float = 1.0
    lr_copied: float = 1.0
    lr_projection: float = 1.0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.share > 0) or self.steps < 0 or self.share < 0:
            raise _bad(self.name, "steps or share", "one of the two, above 0", (self.steps, self.share))
        if self.bundle and self.bundle not in BUNDLES:
            raise _bad(self.name, "bundle", " or ".join(BUNDLES), self.bundle)
        for name in ("prose_share", "reconstruct_share", "continue_share", "example_share", "fsq_share"):
            if getattr(self, name) > 1:
                raise _bad(self.name, name, "a share from 0 to 1", getattr(self, name))
        if any(size < 16 for size in self.crops):
            raise _bad(self.name, "crops", "at least 16 tokens each", self.crops)
        if not self.train or set(self.train) - set(GROUPS):
            raise _bad(self.name, "train", "some of " + ", ".join(GROUPS), self.train)
        for name in ("lr", "lr_new", "lr_copied", "lr_projection"):
            if getattr(self, name) < 0:
                raise _bad(self.name, name, "0 or more", getattr(self, name))


@dataclass(frozen=True)
class Span:
    """A stage and its steps: ``start`` up to, not including, ``end``."""

    stage: Stage
    start: int
    end: int

    def crop(self, step: int) -> int:
        """Tokens that passages are cut to at ``step``; 0: no cut."""
        crops = self.stage.crops
        return crops[(step - self.start) * len(crops) // (self.end - self.start)] if crops else 0


def spans(stages: Sequence[Stage], steps: int) -> tuple[Span, ...]:
    """Stages laid end to end over ``steps``.

    Raises:
        ModelError: 3210 they do not add up to ``steps``, or one gets no step.
    """
    stages = stages or [Stage("main", share=1.0)]
    out: list[Span] = []
    done, shares = 0, 0.0
    for stage in stages:
        # Ends are rounded, not lengths: shares that add up to 1 end exactly at the last step.
        shares += stage.share
        end = done + stage.steps if stage.steps else round(sum(s.steps for s in stages[: len(out)]) + shares * steps)
        out.append(Span(stage, done, end))
        done = end
    if done != steps or any(span.end <= span.start for span in out):
        raise ModelError(
            3210,
            "stages do not fill the run",
            where=", ".join(f"{span.stage.name} {span.end - span.start}" for span in out),
            expected=f"expected stages of at least 1 step that add up to steps = {steps}, got {done}",
        )
    return tuple(out)


def at(found: Sequence[Span], step: int) -> Span:
    """The stage of a step; behind the last step its last."""
    return next((span for span in found if step < span.end), found[-1])


def _bad(stage: str, name: str, expected: str, came: object) -> ModelError:
    return ModelError(3210, f"bad option {name} of stage {stage}", expected=f"expected {expected}, got {came!r}")
