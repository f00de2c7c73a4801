"""Gates against a reference: hidden states layer by layer, logits after the prompt, greedy tokens.

In: a backend and what the reference answered. Out: findings; the first figure beyond its limit is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..engines.base import F32, I64, Engine
from .decoder import HIDDEN
from .drive import Prompts, allocated, continued, embed, lengths_of, prefilled
from .findings import Finding, departed
from .limits import LOGIT_TOLERANCE, Limits
from .probe import Probe
from .recorded import Recorded

BATCH = 32


@dataclass(frozen=True)
class Replay:
    """Every prompt of a reference on one engine, in ragged batches, each step fed by the step before.

    Attributes:
        tokens: int64 [N,n].
        relative: L2 error of the logits after the prompt, of the worst prompt, both sides less their mean over the
            vocabulary, which changes no choice.
        max_abs: of one logit there.
        prompt: the worst one.
    """

    tokens: I64
    relative: float
    max_abs: float
    prompt: int


def replay(engine: Engine, recorded: Recorded) -> Replay:
    """Run it.

    Raises:
        LatentError: 3001 NaN; 3002 something wrote outside the cache.
    """
    relative, largest, tokens = [], 0.0, []
    for start in range(0, len(recorded.prompts), BATCH):
        prompts = recorded.prompts[start : start + BATCH]
        buffers = prefilled(engine, prompts, recorded.tokens.shape[1])
        have = np.array(buffers.logits)[:, recorded.logit_ids].astype(np.float64)
        want = recorded.logits[start : start + BATCH].astype(np.float64)
        largest = max(largest, float(np.abs(have - want).max()))
        have, want = (x - x.mean(axis=1, keepdims=True) for x in (have, want))
        relative.append(np.linalg.norm(have - want, axis=1) / np.linalg.norm(want, axis=1))
        tokens.append(continued(engine, buffers, recorded.tokens.shape[1]))
    rows = np.concatenate(relative)
    return Replay(np.concatenate(tokens), float(rows.max()), largest, int(rows.argmax()))


def check_states(probe: Probe, recorded: Recorded, limits: Limits, *, cached: bool) -> Finding:
    """Hidden states of the probed prompts, all positions from one ragged prefill.

    With ``cached`` only the last position, from a prefill of the rest and one step: there a wrong cache shows.

    Raises:
        ParityError: 4010, naming the layer.
    """
    prompts = sorted({int(p) for p in recorded.probes[:, 0]})
    states = _states(probe, [recorded.prompts[p] for p in prompts], cached)
    gate = "cached states" if cached else "states"
    sampled = len(recorded.channels) < states[0].shape[2]
    limit = limits.sampled if sampled else limits.hidden
    worst = 0.0
    for layer in range(recorded.hidden.shape[0]):
        pairs = [
            (states[prompts.index(p)][layer, -1 if cached else t], recorded.hidden[layer, r])
            for r, (p, t) in enumerate(recorded.probes.tolist())
            if not cached or t == len(recorded.prompts[p]) - 1
        ]
        have = np.stack([h[recorded.channels] for h, _ in pairs]).astype(np.float64)
        want = np.stack([w for _, w in pairs]).astype(np.float64)
        error = float(np.linalg.norm(have - want) / np.linalg.norm(want))
        worst = max(worst, error)
        if limit is not None and not error <= limit:
            where = f"max abs {np.abs(have - want).max():.3g}"
            raise departed(gate, probe.name, HIDDEN.format(layer), error, limit, "rel L2", where)
    return Finding(gate, probe.name, "passed", worst, limit, "rel L2", f"{len(prompts)} prompts")


def _states(probe: Probe, prompts: Prompts, cached: bool) -> list[F32]:
    """For each prompt float32 [L+1,T,H]; with ``cached`` only its last position, read through the cache."""
    lengths, embeds = lengths_of(prompts), embed(probe, prompts)
    buffers = allocated(probe, prompts, 0)
    if not cached:
        probe.prefill(buffers, embeds, lengths)
        hidden = probe.hidden(buffers)
        return [hidden[:, b, :n] for b, n in enumerate(lengths)]
    probe.prefill(buffers, embeds[:, :-1], lengths - 1)
    buffers.feed(embeds[np.arange(len(prompts)), lengths - 1][:, None])
    probe.decode(buffers)
    return [state[:, None] for state in probe.hidden(buffers)[:, :, 0].transpose(1, 0, 2)]


def check_logits(name: str, recorded: Recorded, limits: Limits, found: Replay) -> Finding:
    """The error of the logits after the prompts against its limit."""
    measured = found.max_abs if limits.absolute else found.relative
    if not measured <= limits.logits:
        raise departed("logits", name, "logits", measured, limits.logits, limits.unit, f"prompt {found.prompt}")
    detail = f"{len(recorded.prompts)} prompts, max abs {found.max_abs:.3g}"
    return Finding("logits", name, "passed", measured, limits.logits, limits.unit, detail)


def check_tokens(name: str, recorded: Recorded, limits: Limits, found: Replay) -> Finding:
    """Greedy tokens against the reference's.

    A row is compared up to its first other token. With ``clear_only`` a choice counts where the reference's two
    best logits lie further apart than twice the logit error; the others are told, not counted.
    """
    apart = 2 * (LOGIT_TOLERANCE if limits.absolute else found.max_abs) if limits.clear_only else 0.0
    reached, other = _reached(found.tokens, recorded.tokens), found.tokens != recorded.tokens
    clear = recorded.margins > apart
    wrong = reached & other & clear
    counted, missed = int((reached & clear).sum()), int(wrong.sum())
    share = 1 - missed / max(counted, 1)
    if not share >= limits.agreement or not counted:
        raise departed("tokens", name, "next_token", share, limits.agreement, "share", _first(recorded, found, wrong))
    undecided = int((reached & other & ~clear).sum())
    detail = f"{len(recorded.prompts)} prompts, {counted} choices, {missed} other, {undecided} undecided"
    return Finding("tokens", name, "passed", share, limits.agreement, "share", detail)


def _first(recorded: Recorded, found: Replay, wrong: npt.NDArray[np.bool_]) -> str:
    if not wrong.any():
        return "no choice of the reference was clear enough to compare"
    row, step = (int(i[0]) for i in np.nonzero(wrong))
    want, have, margin = recorded.tokens[row, step], found.tokens[row, step], recorded.margins[row, step]
    where = f"prompt {row}, new token {step}: token {want} wanted, {have} chosen"
    return f"{where}, which the reference has {margin:.3g} behind"


def _reached(have: I64, want: I64) -> npt.NDArray[np.bool_]:
    """Bool [B,n]: every earlier token of the row was the same, so that the step had the same input."""
    same = np.logical_and.accumulate(have == want, axis=1)
    return np.concatenate([np.ones((len(have), 1), bool), same[:, :-1]], axis=1)
