"""Gates between a bundle's decoder and a reference: every export ends here.

    weights by value -> hidden states, whole prompt -> hidden states, one step from the cache
                     -> logits -> greedy tokens of ragged batches -> guard words

Each gate passes or raises ``ParityError`` with the first tensor that departs. Nothing is skipped and nothing
is only warned about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..core.console import message, track
from ..core.errors import BundleError
from ..engines.base import F32, I64
from ..engines.bundle import Bundle
from ..engines.ort import OrtCpuEngine
from ..models.folder import ModelFolder
from . import reference
from .checkpoint import REFERENCE, file_stem
from .decoder import HIDDEN
from .families import read_config
from .probe import SLACK, ProbeEngine, embed, greedy, prefilled
from .recorded import Recorded, read_recorded
from .weights import WeightReader

HIDDEN_TOLERANCE: Final = 1e-5
"""Relative L2 error of one layer's states over all probes, fp32."""
SAMPLED_TOLERANCE: Final = 1e-4
"""The same where only some channels were recorded: fewer numbers, and perhaps another processor's sums."""
LOGIT_TOLERANCE: Final = 1e-3
"""Largest absolute error of a logit."""
BATCH: Final = 32


class ParityError(BundleError):
    """A bundle computes something else than its reference (4010).

    Attributes:
        tensor: the first one that departs.
        max_abs: largest absolute difference in it.
    """

    def __init__(self, tensor: str, max_abs: float, where: str, expected: str) -> None:
        super().__init__(
            4010,
            f"parity failed at {tensor}",
            where=where,
            expected=f"{expected}, max abs difference {max_abs:.3g}",
            fix="report it; this bundle was not kept",
        )
        self.tensor = tensor
        self.max_abs = max_abs


@dataclass(frozen=True)
class Reference:
    """Which yardstick: a file that was recorded, or None for transformers now."""

    path: Path | None


def find_reference(kind: str, llm: ModelFolder, checkpoint: Path) -> Reference:
    """Choose the yardstick before the work starts.

    Args:
        kind: ``auto`` (transformers where installed), ``transformers`` or ``recorded``.
        llm: the model.
        checkpoint: folder that may hold ``golden-NAME.json``; the shipped folder is looked at too.

    Raises:
        BundleError: 4011 nothing to compare with.
    """
    if kind in ("auto", "transformers") and reference.available():
        return Reference(None)
    name = f"golden-{file_stem(llm.name)}.json"
    shipped = Path(__file__).resolve().parent.parent / REFERENCE
    found = [folder / name for folder in (checkpoint, shipped) if (folder / name).is_file()]
    if kind in ("auto", "recorded") and found:
        return Reference(found[0])
    raise BundleError(
        4011,
        "nothing to check the export against",
        where=f"LLM {llm.name}, reference {kind}",
        expected=f"expected torch and transformers, or {name} in the checkpoint",
        fix="pip install 'latentwire[train]'",
    )


def gate(bundle: Bundle, llm: ModelFolder, choice: Reference, *, threads: int | None = None) -> dict[str, Any]:
    """All gates; returns what was measured, for the manifest.

    Raises:
        ParityError: 4010, naming the first tensor that departs.
    """
    recorded = _recorded(bundle, llm, choice)
    message(f"parity: {len(recorded.prompts)} prompts against {recorded.source}")
    check_weights(bundle, llm)
    hidden, logits = check_states(bundle, recorded, threads)
    greedy = check_greedy(bundle, recorded, threads)
    return {"source": recorded.source, "hidden_rel_l2": hidden, "logits_max_abs": logits, **greedy}


def _recorded(bundle: Bundle, llm: ModelFolder, choice: Reference) -> Recorded:
    if choice.path is None:
        prompts = reference.sentence_prompts(llm.tokenizer_path, bundle.manifest.llm.bos)
        message(f"parity: running transformers on {len(prompts)} prompts")
        return reference.measure(llm.path, llm.fingerprint, prompts)
    recorded = read_recorded(choice.path)
    if recorded.llm_fingerprint != llm.fingerprint:
        raise BundleError(
            4011,
            "reference was recorded with another version of the LLM",
            where=str(choice.path),
            expected=f"expected fingerprint {llm.fingerprint[:12]}, got {recorded.llm_fingerprint[:12]}",
            fix="pip install 'latentwire[train]' to compare with transformers itself",
        )
    return replace(recorded, source=f"a recorded run of {recorded.source}")


def check_weights(bundle: Bundle, llm: ModelFolder) -> None:
    """Every tensor of the bundle's weight file equals the model's, value by value."""
    from safetensors import safe_open

    path = bundle.file("decoder.safetensors")
    with WeightReader(llm.weights, read_config(llm.config, str(llm.path))) as reader, safe_open(path, "numpy") as ours:
        for name, want in reader:
            have = ours.get_tensor(name)
            if not np.array_equal(have, want):
                difference = float(np.abs(have.astype(np.float64) - want).max())
                raise ParityError(name, difference, str(path), "expected the model's own weights")


def check_states(bundle: Bundle, recorded: Recorded, threads: int | None) -> tuple[float, float]:
    """Hidden states and logits; returns the largest relative and absolute error.

    Every probe's states are compared twice: all positions from one ragged prefill, and the last position
    from a prefill of the rest and one step, where a wrong cache shows.
    """
    engine = ProbeEngine(bundle, threads=threads)
    try:
        worst = 0.0
        prompts = sorted({int(p) for p in recorded.probes[:, 0]})
        for cached in (False, True):
            states = _states(engine, [recorded.prompts[p] for p in prompts], cached)
            worst = max(worst, _compare_states(recorded, states, prompts, cached))
        return worst, _compare_logits(engine, recorded)
    finally:
        engine.close()


def _states(engine: ProbeEngine, prompts: Sequence[Sequence[int]], cached: bool) -> list[F32]:
    """For each prompt float32 [L+1,T,H]; with ``cached`` only its last position, read through the cache."""
    lengths = np.array([len(p) for p in prompts], np.int64)
    buffers = engine.alloc(len(prompts), int(lengths.max()) + SLACK)
    embeds = embed(engine, prompts)
    if not cached:
        engine.prefill(buffers, embeds, lengths)
        hidden = engine.hidden(buffers)
        return [hidden[:, b, :n] for b, n in enumerate(lengths)]
    engine.prefill(buffers, embeds[:, :-1], lengths - 1)
    rows = np.arange(len(prompts))
    buffers.next_embeds[:, 0] = embeds[rows, lengths - 1]
    engine.decode(buffers)
    buffers.check_guards()
    return [state[:, None] for state in engine.hidden(buffers)[:, :, 0].transpose(1, 0, 2)]


def _compare_states(recorded: Recorded, states: list[F32], prompts: list[int], cached: bool) -> float:
    where = "one step from the cache" if cached else "whole prompts"
    sampled = len(recorded.channels) < states[0].shape[2]
    limit = SAMPLED_TOLERANCE if sampled else HIDDEN_TOLERANCE
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
        if not error <= limit:
            raise ParityError(
                HIDDEN.format(layer),
                float(np.abs(have - want).max()),
                where,
                f"expected relative L2 error at most {limit:g}, got {error:.3g}",
            )
    return worst


def _compare_logits(engine: OrtCpuEngine, recorded: Recorded) -> float:
    worst = 0.0
    for start in range(0, len(recorded.prompts), BATCH):
        prompts = recorded.prompts[start : start + BATCH]
        buffers = prefilled(engine, prompts, 0)
        have = buffers.logits[:, recorded.logit_ids]
        error = float(np.abs(have - recorded.logits[start : start + BATCH]).max())
        worst = max(worst, error)
        if not error <= LOGIT_TOLERANCE:
            raise ParityError("logits", error, "after the prompt", f"expected at most {LOGIT_TOLERANCE:g}")
    return worst


def check_greedy(bundle: Bundle, recorded: Recorded, threads: int | None) -> dict[str, Any]:
    """Greedy tokens of ragged batches through the cache, against the reference's.

    A difference is a failure unless the reference itself was undecided: its two best logits were closer than
    twice the tolerance. Such rows are counted, and compared up to that token.
    """
    engine = OrtCpuEngine(bundle, threads=threads)
    steps, undecided = recorded.tokens.shape[1], 0
    try:
        with track("parity: greedy tokens", len(recorded.prompts), "prompts") as progress:
            for start in range(0, len(recorded.prompts), BATCH):
                prompts = recorded.prompts[start : start + BATCH]
                have = greedy(engine, prompts, steps)
                undecided += _compare_tokens(recorded, start, have)
                progress.advance(len(prompts))
    finally:
        engine.close()
    return {"prompts": len(recorded.prompts), "tokens_per_prompt": steps, "undecided_prompts": undecided}


def _compare_tokens(recorded: Recorded, start: int, have: I64) -> int:
    undecided = 0
    want = recorded.tokens[start : start + len(have)]
    for row in np.flatnonzero((have != want).any(axis=1)):
        step = int(np.argmax(have[row] != want[row]))
        margin = float(recorded.margins[start + row, step])
        if margin > 2 * LOGIT_TOLERANCE:
            raise ParityError(
                "next_token",
                margin,
                f"prompt {start + int(row)}, new token {step}",
                f"expected token {want[row, step]}, got {have[row, step]}, which the reference has {margin:.3g} behind",
            )
        undecided += 1
    return undecided
