"""Kinds of rows: what stands for the text in a prompt, by name.

A name is ``base[@M][_codec][_tuned|_plain]``: ``latents``, ``latents@16``, ``latents@1/4``, ``latents_i8``,
``none_plain``. ``_hybrid`` is fsq (i8 without a quantiser) and the text's names and numbers, which the LLM reads in
front of the question. ``tuned`` rows have the learned task rows between context and question, ``plain`` rows have not;
without a suffix the protocol decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...core.errors import InputError
from .. import latents

TITLES = {
    "none": "no context",
    "random": "{M} random tokens of the text",
    "first": "first {M} tokens of the text",
    "last": "last {M} tokens of the text",
    "surprisal": "{M} most surprising tokens",
    "names": "names and numbers of the text",
    "bm25": "BM25 sentences, {M} tokens (sees the question)",
    "mean4": "mean of 4 embeddings (untrained)",
    "mean8": "mean of 8 embeddings (untrained)",
    "start": "closed-form start (untrained)",
    "shuffled": "latents of another text",
    "latents": "latents",
    "full": "full text",
}
"""What each base kind is called in a table; also their order. ``{M}`` is the number of latents."""
LATENT = ("start", "shuffled", "latents")
"""Kinds whose rows an adapter makes of latents."""
QUERY_AWARE = ("bm25",)
"""Kinds that choose by the question: not what a text compressed once can do."""
_NAME = re.compile(r"([a-z0-9]+)(?:@([0-9/]+))?(?:_(f16|i8|fsq|hybrid))?(?:_(tuned|plain))?")


@dataclass(frozen=True)
class Kind:
    """One kind of row.

    Attributes:
        base: a key of ``TITLES``.
        count: latents or tokens of a text; None: the checkpoint's ``latent_len``.
        codec: what the latents go through on their way; empty: f32.
        tuned: task rows stand in the prompt; None: as the protocol says.
    """

    base: str
    count: latents.Rule | None = None
    codec: str = ""
    tuned: bool | None = None

    def rule(self, default: int) -> latents.Rule:
        """How many latents (or chosen tokens) a text has."""
        return latents.Rule(default) if self.count is None else self.count

    def title(self, default: int) -> str:
        """Its name in a table."""
        out = TITLES[self.base].format(M=self.rule(default))
        if self.count is not None and "{M}" not in TITLES[self.base]:
            out += f", M = {self.count}"
        out += f", {self.codec}" if self.codec else ""
        return out + {None: "", True: " + tuned task token", False: " (plain prompt)"}[self.tuned]


def parse(name: str) -> Kind:
    """A kind from its name.

    Raises:
        InputError: 2111 no such kind.
        ModelError: 3210 no such number of latents.
    """
    match = _NAME.fullmatch(name)
    base, count, codec, tuned = match.groups() if match else ("", None, None, None)
    if base not in TITLES or (codec and base not in LATENT):
        raise InputError(
            2111,
            f"unknown row {name}",
            expected="expected one of " + ", ".join(TITLES),
            fix="more of it: latents@16, latents@1/4, latents_i8, latents_fsq, latents_hybrid, none_plain, full_tuned",
        )
    return Kind(base, latents.parse(count) if count else None, codec or "", None if tuned is None else tuned == "tuned")
