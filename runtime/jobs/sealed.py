"""Records of a job as JSON files that tell when a single bit of them has changed.

The key ``seal`` is the SHA-256 of all the others, and the file is exactly what ``seal`` makes of them: a changed
letter, a missing line, another spacing, a key twice are all found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...core import disk
from ...core.errors import InputError

KEY: Final = "seal"
LIMIT: Final = 256 << 20
"""Bytes of the longest record that is read."""


def seal(facts: Mapping[str, Any]) -> bytes:
    """The file's bytes. Raises ValueError for NaN or infinity."""
    return _text({**facts, KEY: _digest(facts)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts of a record.

    Raises:
        FileNotFoundError: there is none.
        InputError: 2108 it is damaged; OSError where it cannot be read.
    """
    return parse_sealed(disk.read_all(path, LIMIT), str(path))


def parse_sealed(data: bytes, where: str) -> dict[str, Any]:
    """The facts of a record's bytes. Raises InputError 2108."""
    try:
        found = json.loads(data)
        claimed = found.pop(KEY)
        if claimed != _digest(found):
            raise ValueError("its seal does not match")
        if _text({**found, KEY: claimed}) != data:
            raise ValueError("it is not written as this program writes")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as e:
        fix = "copy the folder again, or start the job again with --overwrite"
        said = f"expected a sound record of a job, got: {e}"
        raise InputError(2108, "record of the job is damaged", where=where, expected=said, fix=fix) from e
    result: dict[str, Any] = found
    return result


def canonical(facts: object) -> bytes:
    """JSON bytes that do not depend on the order of keys, for fingerprints."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they are when they are read again: lists in place of tuples."""
    found: dict[str, Any] = json.loads(canonical(facts))
    return found


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(facts)).hexdigest()


def _text(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
