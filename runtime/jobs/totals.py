"""Sums and spreads over shards, kept while they come; the size of this does not depend on how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...core.errors import InputError
from .spread import Spread

SPREAD: Final = "spread"
"""Key of the histograms. They stand in each commit record, and once for all shards in the manifest."""
SPREADS: Final = ("tokens", "latents", "wire_bytes", "ratio_percent")
"""Of a row that was compressed; the last: 100 times bytes of the text by bytes of its frames, rounded down."""
_SUMS: Final = (
    "rows",
    "errors",
    "text_bytes",
    "payload_bytes",
    "wire_bytes",
    "tokens",
    "text_tokens",
    "latents",
    "chunks",
    "truncated",
    "fallback",
)


class Totals:
    """Start at nothing; ``add`` the facts of each committed shard once."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter(dict.fromkeys(_SUMS, 0))
        self._by_code: Counter[str] = Counter()
        self._spreads = {name: Spread() for name in SPREADS}

    def add(self, facts: Mapping[str, Any]) -> None:
        """One commit record: all of it or, where it raises, nothing.

        Raises:
            InputError: 2108 it was written by another version of this program.
        """
        try:
            sums = {name: facts[name] for name in _SUMS}
            spreads = {name: Spread.read(facts[SPREAD][name]) for name in SPREADS}
        except (KeyError, TypeError) as e:
            where, fix = f"shard {facts.get('shard')}", "run the job's command again: what is missing is made again"
            raise InputError(
                2108, "a shard of the job is of another version", where=where, expected=str(e), fix=fix
            ) from e
        self._by_code.update(facts["errors_by_code"])
        self._sums.update(sums)
        for name, spread in spreads.items():
            self._spreads[name].add(spread)

    def __getitem__(self, name: str) -> int:
        return self._sums[name]

    def to_json(self) -> dict[str, Any]:
        """Sums by name, ``errors_by_code``, ``percentiles`` of a row, and how many times smaller it became.

        ``ratio_bytes``: bytes of the texts by bytes of their frames. ``ratio_tokens``: tokens of the texts by what
        stands for them: latents, and tokens of the texts that were sent as text. None where nothing was sent.
        """
        sums = {name: self._sums[name] for name in _SUMS}
        return sums | {
            "errors_by_code": dict(sorted(self._by_code.items())),
            "ratio_bytes": _ratio(sums["text_bytes"], sums["wire_bytes"]),
            "ratio_tokens": _ratio(sums["tokens"], sums["latents"] + sums["text_tokens"]),
            "percentiles": {name: spread.summary() for name, spread in self._spreads.items()},
        }

    def spread(self) -> dict[str, Any]:
        """The histograms, by name."""
        return {name: spread.to_json() for name, spread in self._spreads.items()}


def make_manifest(job: Mapping[str, Any], commits: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a job whose commit records are these, in order."""
    totals, shards = Totals(), []
    for facts in commits:
        totals.add(facts)
        shards.append(without_spread(facts))
    return {**job, "shards": shards, "totals": totals.to_json(), SPREAD: totals.spread()}


def without_spread(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A commit record as the manifest repeats it: a long one would make the manifest of many shards too large."""
    return {key: value for key, value in facts.items() if key != SPREAD}


def _ratio(text: int, sent: int) -> float | None:
    return round(text / sent, 4) if sent else None
