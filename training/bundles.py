"""Loss bundles: which terms are summed, with which weights. A config or one of its stages names one.

Terms, each a mean over the positions it concerns in one micro-batch, for one LLM:

    ce            sum w CE / sum w over all targets; w = k_token_weight for the first K tokens, first_token_ce more for
                  the first
    answer        the same over answers to questions, w = k_token_weight for the first K tokens, else 1
    k_token       CE of the first K tokens of answers and cloze answers
    first_token   CE of their first token
    reconstruct   CE of passage text repeated word for word
    continue      CE of what follows the encoded part of a passage
    cloze         CE of blanked words
    kd            tau^2 KL to the same LLM reading the full text, at all scored positions (Hinton et al. 2015)
    prefix_kd     the same at the words of questions and their anchors
    latent_cos    1 - cosine to the latents of a teacher encoder
    latent_mse    mean squared difference to them
    keep          binary cross-entropy: does a token stand in an answer? (an encoder whose span_type is learned)
    follow        the same of a byte encoder, to what the head of its teacher says: the sum over bytes, for each token

A task that does not occur in a micro-batch adds nothing there. ``kd`` of the bundle ``default`` has the weight that
the option ``kd_weight`` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TERMS: Final = (
    *("ce", "answer", "k_token", "first_token", "reconstruct", "continue", "cloze"),
    *("kd", "prefix_kd", "latent_cos", "latent_mse", "keep", "follow"),
)
TEACHER_TERMS: Final = ("kd", "prefix_kd")
"""Terms for which the LLM also reads the full text."""

LATENT_TERMS: Final = ("latent_cos", "latent_mse")
"""Terms of latents, for which a teacher encoder reads the text, and no LLM anything."""

FOLLOW_TERM: Final = "follow"
"""The term for which a teacher's head reads the text, and no LLM anything."""

KEEP_TERM: Final = "keep"
"""The term for which the encoder alone reads the text."""

_PASSAGES = {"reconstruct": 1.0, "continue": 1.0, "cloze": 1.0}
BUNDLES: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "default": {"ce": 1.0},
        "seed": {"k_token": 1.0, "first_token": 0.5, "kd": 0.5, "prefix_kd": 0.5},
        "pretrain": _PASSAGES,
        "answer": {"answer": 1.0, "kd": 0.5, **_PASSAGES},
        "answer+seed": {"answer": 1.0, "first_token": 0.5, "kd": 0.5, **_PASSAGES},
        "latent": {"latent_cos": 1.0, "latent_mse": 1.0},
        "keep": {"keep": 1.0},
        "follow": {"follow": 1.0},
    }
)


def weights(bundle: str, kd_weight: float) -> dict[str, float]:
    """Weight by term of a named bundle."""
    found = dict(BUNDLES[bundle])
    if bundle == "default" and kd_weight:
        found["kd"] = kd_weight
    return found


def needs_teacher(found: Mapping[str, float]) -> bool:
    """Whether a term compares with the LLM that reads the full text."""
    return any(term in found for term in TEACHER_TERMS)


def needs_lesson(found: Mapping[str, float]) -> bool:
    """Whether a term compares with a teacher encoder."""
    return any(term in found for term in (*LATENT_TERMS, FOLLOW_TERM))


def needs_llms(found: Mapping[str, float]) -> bool:
    """Whether a term asks an LLM."""
    return any(term not in (*LATENT_TERMS, KEEP_TERM, FOLLOW_TERM) for term in found)
