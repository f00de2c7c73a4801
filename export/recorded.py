"""What a trusted implementation of an LLM answered: the yardstick of parity.

Either measured now (``reference``) or read from a JSON file that somebody measured earlier, so that a
machine without torch can check its export too. Numbers only: nothing here runs a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

FORMAT: Final = "latentwire-golden"
VERSION: Final = 1


@dataclass(frozen=True)
class Recorded:
    """One run of a reference.

    Attributes:
        source: who answered, for people: ``transformers 5.23.0, torch 2.13.0, fp32``.
        llm_fingerprint: of the model that answered.
        prompts: token ids, N prompts of various lengths.
        tokens: int64 [N,n], greedy continuation; goes on after an end-of-text token.
        margins: float32 [N,n], logit of the choice minus the next best.
        logit_ids: int64 [J], tokens whose logits are kept.
        logits: float32 [N,J], at the last prompt position.
        probes: int64 [R,2], (prompt, position) pairs whose hidden states are kept.
        channels: int64 [K], channels kept.
        hidden: float32 [L+1,R,K]: before layer 0, then after each layer.
    """

    source: str
    llm_fingerprint: str
    prompts: list[list[int]]
    tokens: I64
    margins: F32
    logit_ids: I64
    logits: F32
    probes: I64
    channels: I64
    hidden: F32


def shrink(full: Recorded, *, clear: float, probes: int, channels: int, logits: int) -> Recorded:
    """A part of a run that fits in a small file.

    Args:
        full: the run.
        clear: prompts with a smaller margin anywhere are left out, so that other processors, which add in
            another order, must still choose the same tokens.
        probes: prompts whose last position is kept.
        channels: channels kept, evenly spread.
        logits: logits kept, evenly spread.
    """
    keep = np.flatnonzero((full.margins >= clear).all(axis=1))
    ends = {int(p): r for r, (p, t) in enumerate(full.probes) if t == len(full.prompts[p]) - 1}
    chosen = [int(p) for p in keep if int(p) in ends][:probes]
    at = np.linspace(0, full.hidden.shape[2] - 1, channels).astype(np.int64)
    ids = np.linspace(0, full.logits.shape[1] - 1, logits).astype(np.int64)
    last = np.array([[keep.tolist().index(p), len(full.prompts[p]) - 1] for p in chosen], np.int64)
    return replace(
        full,
        prompts=[full.prompts[p] for p in keep],
        tokens=full.tokens[keep],
        margins=full.margins[keep],
        logit_ids=full.logit_ids[ids],
        logits=full.logits[keep][:, ids],
        probes=last,
        channels=full.channels[at],
        hidden=full.hidden[:, [ends[p] for p in chosen]][:, :, at],
    )


def to_json(recorded: Recorded) -> dict[str, Any]:
    """The JSON object of a run; numbers rounded to seven digits, which float32 has."""
    body: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name, value in vars(recorded).items():
        body[name] = _rounded(value) if isinstance(value, np.ndarray) else value
    return body


def _rounded(array: npt.NDArray[Any]) -> Any:
    if array.dtype == np.int64:
        return array.tolist()
    return json.loads(json.dumps(array.tolist()), parse_float=lambda text: float(f"{float(text):.8g}"))


def read_recorded(path: Path) -> Recorded:
    """Read a recorded run.

    Raises:
        ModelError: 3220 not such a file, or incomplete.
    """
    try:
        body: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["version"] != VERSION:
            raise ValueError(f"expected {FORMAT} version {VERSION}")
        return Recorded(
            str(body["source"]),
            str(body["llm_fingerprint"]),
            [list(map(int, p)) for p in body["prompts"]],
            np.array(body["tokens"], np.int64),
            np.array(body["margins"], np.float32),
            np.array(body["logit_ids"], np.int64),
            np.array(body["logits"], np.float32),
            np.array(body["probes"], np.int64).reshape(-1, 2),
            np.array(body["channels"], np.int64),
            np.array(body["hidden"], np.float32),
        )
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ModelError(3220, "recorded reference is unreadable", where=str(path), expected=str(e)) from e
