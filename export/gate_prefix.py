"""A gate between runs of one engine that must agree, with keys and values of latents in the cache.

What these are was compared with PyTorch when the checkpoint was published; here it is what an engine does with them:
a ragged batch against each row alone, and each step from the cache against everything read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..engines.base import Engine
from ..engines.bundle import Bundle
from ..engines.prefix import Prefix, latent_prefix, prefill_with, prefix_info, room
from .drive import SLACK, Run, after, beside, embed, follow, lengths_of
from .findings import Finding
from .gate_same import STEPS, Sample, compare

LATENTS = 6
"""Of the longest row; the others have fewer."""


def has_prefix(bundle: Bundle) -> bool:
    """Whether there is anything to check."""
    return prefix_info(bundle.manifest) is not None


def check_prefix(engine: Engine, s: Sample) -> Finding:
    """Rows with one latent and more, behind prompts in which tokens stand for the latents' rows."""
    made = _made(engine, len(s.first))
    # A prompt that is too short for its latents gives way to the longest: any will do.
    long = max(s.first, key=len)
    prompts = [p if len(p) > head else long for p, head in zip(s.first, made.heads.tolist(), strict=True)]
    cached = _run(engine, prompts, made, STEPS)
    alone = beside([_run(engine, [p], _row(made, b), STEPS) for b, p in enumerate(prompts)])
    found = compare("prefix", engine, cached, alone, s.same)
    grown = [[[*p, *cached.tokens[b, :n].tolist()] for b, p in enumerate(prompts)] for n in range(STEPS)]
    anew = [beside([_run(engine, [p], _row(made, b), 1) for b, p in enumerate(step)]) for step in grown]
    steps = compare("prefix", engine, cached, after(anew), s.same, fed=True)
    worst = max(found.measured or 0.0, steps.measured or 0.0)
    return replace(found, measured=worst, detail=f"{found.detail}, in a batch, alone, cached and anew")


def _made(engine: Engine, rows: int) -> Prefix:
    """Slots of random latents, in each row another number of them."""
    counts = [1 + b % LATENTS for b in range(rows)]
    z = np.random.default_rng(0).standard_normal((rows, LATENTS, engine.bundle.manifest.encoder.d_z))
    z *= np.arange(LATENTS)[None, :, None] < np.array(counts)[:, None, None]
    made = latent_prefix(engine, z.astype(np.float32), counts)
    assert made is not None
    return made


def _row(prefix: Prefix, b: int) -> Prefix:
    parts = {name: getattr(prefix, name)[b : b + 1] for name in ("keys", "values", "counts", "heads")}
    return replace(prefix, **parts)


def _run(engine: Engine, prompts: Sequence[Sequence[int]], prefix: Prefix, steps: int) -> Run:
    lengths = lengths_of(prompts)
    buffers = engine.alloc(len(prompts), room(prefix, lengths) + steps + SLACK)
    prefill_with(engine, buffers, embed(engine, prompts), lengths, prefix)
    out = follow(engine, buffers, steps, lengths - prefix.heads - 1)
    buffers.check_guards()
    return out
