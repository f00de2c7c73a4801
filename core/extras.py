"""Optional packages: a missing one is answered by the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import EnvironmentFault


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import in the block into an install hint.

    Raises:
        EnvironmentFault: 5011 names the missing package and the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("latentwire"):
            raise
        raise EnvironmentFault(
            5011, "package not installed", where=e.name, fix=f"pip install 'latentwire[{extra}]'"
        ) from e
