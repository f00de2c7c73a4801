"""API keys of a server: from a file or the environment, never from the command line, which others can read."""

from __future__ import annotations

import os
from pathlib import Path

from ...core.errors import InputError


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of the file, or the one of ``LATENTWIRE_API_KEY``; none where neither is given.

    Raises:
        InputError: 2106 the file cannot be read; 2104 it holds no key.
    """
    if path is None:
        key = os.environ.get("LATENTWIRE_API_KEY", "").strip()
        return (key,) if key else ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(2106, "file of API keys cannot be read", where=str(path), expected=str(e)) from e
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise InputError(2104, "file of API keys holds none", where=str(path), fix="write one key a line")
    return keys
