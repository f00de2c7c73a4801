"""What is logged of a step: the terms of its micro-batches, fetched from the device together, and their means."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Done:
    """A micro-batch behind its backward pass; values are still on the device."""

    number: int
    origin: tuple[tuple[str, int], ...]
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Record:
    """The same with values."""

    number: int
    origin: tuple[tuple[str, int], ...]
    terms: dict[str, float]


def records(done: list[Done], values: list[float]) -> list[Record]:
    """``values`` are those of all terms, in order."""
    left = iter(values)
    return [Record(one.number, one.origin, {name: next(left) for name in one.terms}) for one in done]


def means(found: list[Record]) -> dict[str, float]:
    """Each term's mean over the micro-batches that have it."""
    sums: dict[str, float] = {}
    names = dict.fromkeys(name for record in found for name in record.terms if name != "loss")
    for name in names:
        values = [record.terms[name] for record in found if name in record.terms]
        for value in values:
            sums[name] = sums.get(name, 0.0) + value / len(values)
    return {name: round(value, 4) for name, value in sums.items()}
