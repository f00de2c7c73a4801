"""Sums over shards, kept while they come; the size of this does not depend on how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

_SUMS: Final = (
    "rows",
    "errors",
    "text_bytes",
    "payload_bytes",
    "wire_bytes",
    "tokens",
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

    def add(self, facts: Mapping[str, Any]) -> None:
        """One commit record."""
        for name in _SUMS:
            self._sums[name] += facts[name]
        self._by_code.update(facts["errors_by_code"])

    def __getitem__(self, name: str) -> int:
        return self._sums[name]

    def to_json(self) -> dict[str, Any]:
        """Sums by name, and ``errors_by_code``."""
        return {name: self._sums[name] for name in _SUMS} | {"errors_by_code": dict(sorted(self._by_code.items()))}
