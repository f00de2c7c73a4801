"""Which packages of this project's own requirements are here: read from its metadata, not from a second list."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Final

from packaging.requirements import Requirement

ALWAYS: Final = "everything"
INTERNAL: Final = ("test", "fuzz")
"""Extras of this project's own development."""


@dataclass(frozen=True)
class Extra:
    """One group of packages.

    Attributes:
        name: of the extra; ``everything``: what is always needed.
        installed: package -> version.
        missing: packages that are not here.
    """

    name: str
    installed: dict[str, str]
    missing: tuple[str, ...]

    @property
    def fix(self) -> str:
        """The command that brings what is missing; empty where nothing is."""
        if not self.missing:
            return ""
        return "pip install " + ("latentwire" if self.name == ALWAYS else f"'latentwire[{self.name}]'")


def extras(package: str = "latentwire") -> tuple[Extra, ...]:
    """All groups of ``package``, what is always needed first, then in the order of its metadata."""
    lines = [Requirement(line) for line in requires(package) or []]
    names = [name for name in metadata(package).get_all("Provides-Extra") or [] if name not in INTERNAL]
    always = _named(lines, package, "")
    groups = {name: [n for n in _named(lines, package, name) if n not in always] for name in names}
    return tuple(_look(name, own) for name, own in {ALWAYS: always, **groups}.items())


def _named(lines: list[Requirement], package: str, extra: str) -> list[str]:
    """Names of what this machine needs for an extra, or, where it is empty, always."""
    fits = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    return [line.name for line in fits if line.name != package]


def _look(name: str, packages: list[str]) -> Extra:
    installed, missing = {}, []
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    return Extra(name, installed, tuple(missing))
