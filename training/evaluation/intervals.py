"""Bootstrap over contexts: questions about one text are not independent, so whole texts are drawn.

One set of resamples serves every figure, so differences and ratios of rows are paired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...core.scoring import RESAMPLES

F64 = npt.NDArray[np.float64]


class Bootstrap:
    """``RESAMPLES`` resamples of contexts with replacement.

    Args:
        groups: [N], which context each question belongs to, numbered from 0.
        seed: draws the resamples.
    """

    def __init__(self, groups: Sequence[int], seed: int = 0) -> None:
        index = np.asarray(groups)
        contexts = int(index.max()) + 1
        drawn = np.random.default_rng(seed).integers(contexts, size=(RESAMPLES, contexts))
        counts = np.stack([np.bincount(row, minlength=contexts) for row in drawn])
        self._weights: F64 = counts[:, index].astype(np.float64)

    def means(self, values: F64, subset: npt.NDArray[np.bool_] | None = None) -> F64:
        """[R], the mean of ``values`` [N] (of those in ``subset``) in each resample; NaN where nothing was drawn."""
        weights = self._weights if subset is None else self._weights * subset
        total = weights.sum(1)
        out: F64 = np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)
        return out


def spread(resampled: F64) -> list[float] | None:
    """The 95 % interval of a figure's resamples, [low, high]; None where more than half are undefined."""
    known = resampled[np.isfinite(resampled)]
    if 2 * len(known) < len(resampled):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]
