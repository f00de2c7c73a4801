"""Which tokens of a text to keep when only some may stand in the prompt. Numbers in, numbers out."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..data import SENTENCE

WORD = re.compile(r"\w+")


def random_tokens(ids: Sequence[int], count: int, text: str) -> list[int]:
    """``count`` tokens in text order, drawn by the text alone, so that every LLM and every run draws alike."""
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    return _keep(ids, rng.permutation(len(ids))[:count])


def surprising_tokens(ids: Sequence[int], count: int, nats: Sequence[float]) -> list[int]:
    """The ``count`` tokens that the LLM expected least, in text order (Selective Context, arXiv 2310.06201).

    Args:
        ids: [T].
        count: at most this many.
        nats: [T], ``-log p(id_t | ids before t)``.
    """
    return _keep(ids, np.argsort(-np.asarray(nats), kind="stable")[:count])


def _keep(ids: Sequence[int], chosen: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    return [ids[i] for i in sorted(int(i) for i in chosen)]


def sentences(text: str) -> list[str]:
    """Sentences of a text, split behind full stops, question and exclamation marks."""
    return [s for s in SENTENCE.split(text) if s.strip()]


def bm25(query: str, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Okapi BM25 of each document: ``sum_w idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b len / mean len))``.

    ``idf(w) = log(1 + (N - df + 0.5) / (df + 0.5))`` over these documents (Robertson and Zaragoza 2009).
    """
    bags = [Counter(WORD.findall(d.lower())) for d in documents]
    mean = sum(map(Counter.total, bags)) / max(1, len(bags)) or 1.0
    found = Counter(w for bag in bags for w in bag)
    out = []
    for bag in bags:
        norm = k1 * (1 - b + b * bag.total() / mean)
        score = 0.0
        for word in set(WORD.findall(query.lower())) & bag.keys():
            idf = math.log(1 + (len(bags) - found[word] + 0.5) / (found[word] + 0.5))
            score += idf * bag[word] * (k1 + 1) / (bag[word] + norm)
        out.append(score)
    return out


def sentence_tokens(question: str, pieces: Sequence[Sequence[int]], texts: Sequence[str], count: int) -> list[int]:
    """Tokens of the sentences that fit the question best, in text order, ``count`` at most.

    The best sentence is always there, cut if it is too long; others only whole.

    Args:
        question: the query.
        pieces: token ids of each sentence.
        texts: the sentences.
        count: token budget.
    """
    order = sorted(range(len(texts)), key=lambda i: -bm25(question, texts)[i])
    kept: dict[int, Sequence[int]] = {}
    left = count
    for index in order:
        if not kept:
            kept[index] = pieces[index][:count]
        elif len(pieces[index]) <= left:
            kept[index] = pieces[index]
        else:
            continue
        left -= len(kept[index])
    return [token for index in sorted(kept) for token in kept[index]]
