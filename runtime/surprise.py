"""How surprised the LLM is by given answers: nats of each token, teacher-forced on any engine.

In: requests and their target tokens. Out: nats. Knows nothing of frames and words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..engines.base import F32, Engine
from .request import Request, Sizes
from .scheduler.rows import Rows

F64 = npt.NDArray[np.float64]


def surprise(
    engine: Engine, requests: Sequence[Request], targets: Sequence[Sequence[int]], batch: int = 16
) -> list[F64]:
    """Nats of every target token behind its prompt and the targets before it.

    Args:
        engine: with its adapter and decoder.
        requests: prompts that fit with their targets.
        targets: token ids, at least one each.
        batch: prompts that run together.

    Returns:
        for each request f64 [tokens of its target].

    Raises:
        LatentError: 3001, 3002. EnvironmentFault: 5003.
    """
    sizes, rows, fixed = Sizes(engine), Rows(engine), engine.bundle.manifest.capacity
    # Sorted so that prompts of a batch are of one kind and about one length.
    order = sorted(range(len(requests)), key=lambda i: (sizes.kind(requests[i]), sizes.prompt(requests[i])))
    out: list[F64] = [np.empty(0)] * len(requests)
    most = min(batch, engine.max_batch or batch)
    at = 0
    while at < len(order):
        kind = sizes.kind(requests[order[at]])
        chosen = [i for i in order[at : at + most] if sizes.kind(requests[i]) == kind]
        nats = _batch(sizes, rows, fixed, [requests[i] for i in chosen], [targets[i] for i in chosen])
        for index, own in zip(chosen, nats, strict=True):
            out[index] = own
        at += len(chosen)
    rows.drop()
    return out


def _batch(sizes: Sizes, rows: Rows, fixed: int, requests: list[Request], targets: list[Sequence[int]]) -> list[F64]:
    longest = max(map(len, targets))
    rows.open(len(requests), fixed or max(map(sizes.prompt, requests)) + longest)
    rows.prefill(list(enumerate(requests)))
    found: list[list[float]] = [[] for _ in requests]
    every = range(len(requests))
    for step in range(longest):
        # A row that has no more targets goes on with its last one, and nobody looks.
        tokens = {i: targets[i][min(step, len(targets[i]) - 1)] for i in every}
        nats = _nats(rows.logits(every), list(tokens.values()))
        for i in every:
            if step < len(targets[i]):
                found[i].append(float(nats[i]))
        if step + 1 < longest:
            rows.choose(tokens)
            rows.decode(0, len(requests), [])
    return [np.array(one) for one in found]


def _nats(logits: F32, tokens: Sequence[int]) -> F64:
    x = logits.astype(np.float64)
    top = x.max(axis=1)
    whole = top + np.log(np.exp(x - top[:, None]).sum(axis=1))
    nats: F64 = whole - x[np.arange(len(tokens)), list(tokens)]
    return nats
