"""A job's settings in a TOML file: ``inputs`` and options of the command, by their long names with _ for -.

In: a path, the names that the command knows. Out: inputs, and values for the other names. Imports nothing heavy.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from ...core.errors import InputError

SPEC_SUFFIX: Final = ".toml"
INPUTS: Final = "inputs"


def read_spec(path: Path, known: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Inputs and options.

    Raises:
        InputError: 2104 no inputs named; 2106 unreadable; 2111 not TOML, or a key that is no option.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as e:
        raise InputError(2106, "cannot read the job's settings", where=str(path), expected=e.strerror or "") from e
    except ValueError as e:
        raise InputError(2111, "the job's settings are not TOML", where=str(path), expected=str(e)) from e
    names = {_plain(name): name for name in known}
    wrong = [key for key in found if key not in names]
    if wrong:
        expected = f"expected some of {', '.join(sorted(names))}, got {', '.join(map(repr, wrong))}"
        raise InputError(2111, "the job's settings name an unknown option", where=str(path), expected=expected)
    inputs = found.pop(INPUTS, [])
    if not isinstance(inputs, list) or not inputs or not all(isinstance(i, str) for i in inputs):
        expected = 'expected inputs = ["docs.jsonl"]'
        raise InputError(2104, "the job's settings name no input", where=str(path), expected=expected)
    return inputs, {names[key]: value for key, value in found.items()}


def _plain(name: str) -> str:
    """``as_json`` of the code is ``json`` for people."""
    return name.removeprefix("as_")
