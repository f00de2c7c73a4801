"""Gates of a bundle against itself: what must not change a row's answer does not change it.

    batch     a row in a ragged batch equals the row alone
    padding   more padding, filled with anything, changes nothing
    steps     a token from the cache is the token of a fresh prefill over all before it
    reuse     a second batch in the same memory does not see the first
    refill    a finished row's slot takes a new prompt while the others go on
    cache     every slot up to the last is written in place, none after it, and no word around the cache

In: any engine. Out: findings; the first departure is raised, named by the first tensor that departs where the
engine's layers can be watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core.errors import LatentError
from ..engines.base import F32, Engine
from ..engines.buffers import SENTINEL
from .decoder import HIDDEN
from .drive import Prompts, Run, after, allocated, beside, embed, follow, lengths_of, run
from .findings import Finding, departed

PAD = 9
"""Positions of padding that must not matter."""
STEPS = 4
"""Tokens of each run."""
ROWS = 6
"""Prompts of a batch."""


@dataclass(frozen=True)
class Sample:
    """Prompts of different lengths for these gates: two batches that share no row; ``same`` is the bound."""

    first: Prompts
    second: Prompts
    same: float


def sample(prompts: Prompts, same: float) -> Sample:
    """Spread over all lengths; the first batch has the longest prompts, so that its rests would show in the second."""
    ordered = sorted(prompts, key=len)
    half = len(ordered) // 2
    pick = [ordered[int(i)] for i in np.linspace(0, half - 1, min(ROWS, half))] if half else list(ordered)
    long = [ordered[int(i)] for i in np.linspace(half, len(ordered) - 1, len(pick))]
    # One token less or more here and there: recorded prompts come in groups of one length.
    ragged = [p[: max(1, len(p) - i)] for i, p in enumerate(pick)]
    return Sample([p[: max(1, len(p) - i)] for i, p in enumerate(long)], ragged, same)


Gate = Callable[[Engine, Sample], Finding]


def check_batch(engine: Engine, s: Sample) -> Finding:
    """A ragged batch against each of its rows alone."""
    alone = beside([run(engine, [p], STEPS) for p in s.first])
    return compare("batch", engine, run(engine, s.first, STEPS), alone, s.same)


def check_padding(engine: Engine, s: Sample) -> Finding:
    """Nine positions of junk after the longest prompt, and a cache that has room for them."""
    padded = run(engine, s.first, STEPS, pad=PAD)
    return compare("padding", engine, padded, run(engine, s.first, STEPS), s.same)


def check_steps(engine: Engine, s: Sample) -> Finding:
    """Each step from the cache against a prefill of the prompt and the tokens before it."""
    cached = run(engine, s.first, STEPS)
    fresh = [
        run(engine, [[*p, *cached.tokens[b, :step].tolist()] for b, p in enumerate(s.first)], 1)
        for step in range(STEPS)
    ]
    # The tokens fed are the cached run's, so no row ever leaves the comparison.
    return compare("steps", engine, cached, after(fresh), s.same, fed=True)


def check_reuse(engine: Engine, s: Sample) -> Finding:
    """A batch in memory that held a longer one, against the same batch in new memory."""
    buffers = allocated(engine, s.first, STEPS)
    run(engine, s.first, STEPS, buffers)
    again = run(engine, s.second, STEPS, buffers)
    return compare("reuse", engine, again, run(engine, s.second, STEPS), s.same)


def check_refill(engine: Engine, s: Sample) -> Finding:
    """Two rows end after a step; their slots take new prompts; the others go on. Every row equals its run alone."""
    ended = sorted({0, len(s.first) - 1})
    buffers = allocated(engine, s.first, STEPS + 2)
    if not hasattr(buffers, "rows"):
        return Finding("refill", engine.name, "not run", detail="this engine refills no rows")
    first = run(engine, s.first, 2, buffers)
    for row in ended:
        engine.prefill(buffers.rows(row, row + 1), embed(engine, [s.second[row]]), lengths_of([s.second[row]]))
    rest = follow(engine, buffers, STEPS)
    have, want = [], []
    for b, prompt in enumerate(s.first):
        if b in ended:
            have.append(rest.row(b).until(STEPS))
            want.append(run(engine, [s.second[b]], STEPS))
        else:  # ``rest`` begins with what stood there: the second step.
            have.append(after([first.row(b).until(1), rest.row(b)]).until(STEPS))
            want.append(run(engine, [prompt], STEPS))
    found = compare("refill", engine, beside(have), beside(want), s.same)
    return replace(found, detail=f"{len(ended)} of {len(s.first)} rows refilled")


def check_cache(engine: Engine, s: Sample) -> Finding:
    """Guard words, slots written and slots not written, after a prefill and three steps.

    A decoder whose ``present`` is not the memory of its ``past`` leaves slots unwritten here.
    """
    buffers = allocated(engine, s.first, STEPS)
    embeds, lengths = embed(engine, s.first), lengths_of(s.first)
    engine.prefill(buffers, embeds, lengths)
    for _ in range(STEPS - 1):
        engine.decode(buffers)
    used = np.maximum(embeds.shape[1], lengths + STEPS - 1)
    for name in buffers.cache:
        cache = np.asarray(buffers.cache[name])
        for b, end in enumerate(used.tolist()):
            unwritten = int((cache[b, :, :end] == SENTINEL).all(axis=(0, 2)).sum())
            beyond = int((cache[b, :, end:] != SENTINEL).any(axis=(0, 2)).sum())
            if unwritten or beyond:
                where = f"row {b}, {unwritten} slots not written in place, {beyond} written beyond slot {end - 1}"
                raise departed("cache", engine.name, name, float(unwritten + beyond), 0.0, "slots", where)
    try:
        buffers.check_guards()
    except LatentError as e:
        raise departed("cache", engine.name, e.where.removeprefix("tensor "), 1.0, 0.0, "slots", e.what) from e
    return Finding("cache", engine.name, "passed", 0.0, 0.0, "slots", f"{len(buffers.cache)} tensors")


def compare(gate: str, engine: Engine, have: Run, want: Run, limit: float, *, fed: bool = False) -> Finding:
    """Step by step: states of each layer where watched, then logits, then tokens.

    A row leaves the comparison after its first other token, unless both runs were ``fed`` the same ones; a
    token may differ only where two logits are closer than the runs' own difference.
    """
    same = np.ones(len(have.tokens), bool)
    worst, undecided = 0.0, 0
    for step in range(len(have.logits)):
        for layer in range(0 if have.hidden is None else have.hidden.shape[1]):
            assert have.hidden is not None
            assert want.hidden is not None
            known = same & ~np.isnan(have.hidden[step, layer]).all(axis=-1)
            error = _worst(have.hidden[step, layer], want.hidden[step, layer], known)
            if error > limit:
                raise departed(gate, engine.name, HIDDEN.format(layer), error, limit, "rel L2", f"step {step}")
        error = _worst(_centred(have.logits[step]), _centred(want.logits[step]), same)
        worst = max(worst, error)
        if not error <= limit:
            raise departed(gate, engine.name, "logits", error, limit, "rel L2", f"step {step}")
        other = same & (have.tokens[:, step] != want.tokens[:, step])
        for b in np.flatnonzero(other):
            mine, theirs = have.logits[step, b], want.logits[step, b]
            margin = float(theirs[want.tokens[b, step]] - theirs[have.tokens[b, step]])
            if margin > 2 * float(np.abs(mine - theirs).max()):
                where = f"step {step}, row {b}: token {want.tokens[b, step]} wanted, {have.tokens[b, step]} chosen"
                raise departed(gate, engine.name, "next_token", margin, None, "margin", where)
        undecided += int(other.sum())
        if not fed:
            same &= ~other
    detail = f"{len(have.tokens)} rows, {len(have.logits)} steps" + (f", {undecided} undecided" if undecided else "")
    return Finding(gate, engine.name, "passed", worst, limit, "rel L2", detail)


def _centred(logits: F32) -> F32:
    """Less the mean over the vocabulary, which changes no choice."""
    centred: F32 = logits - logits.mean(axis=-1, keepdims=True)
    return centred


def _worst(have: F32, want: F32, rows: npt.NDArray[np.bool_]) -> float:
    """Relative L2 error of the worst of these rows, 0 if there are none."""
    if not rows.any():
        return 0.0
    a, b = have[rows].astype(np.float64), want[rows].astype(np.float64)
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


GATES: dict[str, Gate] = {
    "batch": check_batch,
    "padding": check_padding,
    "steps": check_steps,
    "reuse": check_reuse,
    "refill": check_refill,
    "cache": check_cache,
}
