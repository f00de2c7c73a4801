"""Where spans of a text end that are cut at its rarest tokens; the same rule as ``training.pooling``, without torch.

What an encoder with ``span_type = "salient"`` computes in its graph, for readers who want to know which piece of a text
a latent speaks of.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SPAN_TYPES: Final = ("equal", "salient", "learned")
STEPS: Final = 4
"""Levels of rarity for each unit (a factor e in document frequency): tokens of one level are spread evenly."""
LEVELS: Final = 512
PLACES: Final = 1 << 14
GOLDEN: Final = 10127
"""Odd, and the golden ratio's share of ``PLACES``: its multiples fall evenly over any stretch of text."""


def span_starts(idf: npt.NDArray[Any], count: int, places: int = 1) -> list[int]:
    """First token of each span of one text.

    Args:
        idf: floats [T], T at least 1 and at most ``PLACES``: inverse document frequency of each token.
        count: spans, from 1 to T.
        places: pieces of a span, where latents name several tokens: the text is cut into ``places * count`` (at most T)
            and spans take them in turn, as evenly as can be.

    The last token ends a span, and so do the ``count - 1`` rarest others; of equally rare ones that with the smaller
    ``place * GOLDEN % PLACES``.
    """
    place = np.arange(len(idf))
    level = np.clip(np.floor(idf.astype(np.float32) * STEPS), 0, LEVELS - 1).astype(np.int64)
    level[-1] = LEVELS
    rank = level * PLACES + (PLACES - 1 - place * GOLDEN % PLACES)
    pieces = min(places * count, len(idf))
    ends = np.sort(np.argsort(-rank, kind="stable")[:pieces])
    # A span begins with the first piece of which it is the owner, piece * count // pieces.
    firsts = [-(-span * pieces // count) for span in range(1, count)]
    return [0, *(int(ends[first - 1]) + 1 for first in firsts)]
