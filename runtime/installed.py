"""Which packages of this project's own requirements are here: read from its metadata, not from a second list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

ALWAYS: Final = "everything"
INTERNAL: Final = ("test", "fuzz")
"""Extras of this project's own development."""
_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9._-]+)[^;]*(?:;(.*))?$")
_EXTRA: Final = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


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
    groups: dict[str, list[str]] = {ALWAYS: []}
    for line in requires(package) or []:
        found = _REQUIREMENT.match(line.strip())
        marker = _EXTRA.search((found[2] or "") if found else "")
        group = marker[1] if marker else ALWAYS
        if found and group not in INTERNAL and found[1] != package:
            groups.setdefault(group, []).append(found[1])
    return tuple(_look(name, packages) for name, packages in groups.items())


def _look(name: str, packages: list[str]) -> Extra:
    installed, missing = {}, []
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    return Extra(name, installed, tuple(missing))
