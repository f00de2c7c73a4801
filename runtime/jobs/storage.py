"""Input files wherever they lie: local paths, and URLs of whatever fsspec reaches.

In: names as the user gives them; what holds ``://`` is a URL. Out: open files, sizes, lists. Reads only.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...core.errors import InputError, LatentWireError


@dataclass(frozen=True)
class Stamp:
    """Changes when a file is written again.

    Attributes:
        size: bytes.
        mark: time of change, or what the store has in its place.
    """

    size: int
    mark: str


def is_url(name: str) -> bool:
    """The name is not a local path."""
    return "://" in name


def unreadable(name: str, error: Exception) -> InputError:
    """2106 for a file that the system will not open or read."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return InputError(2106, "cannot read input", where=name, expected=said, fix="check the path and your rights")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what reading a file raises into InputError 2106 that names it."""
    try:
        yield
    except LatentWireError:
        raise
    except Exception as e:
        if isinstance(e, OSError) or is_url(name):  # each store raises errors of its own
            raise unreadable(name, e) from e
        raise


def open_binary(name: str) -> BinaryIO:
    """A file that can be read and sought.

    Raises:
        InputError: 2106 missing, no plain file, unreadable.
        EnvironmentFault: 5011 a package for this kind of URL is missing.
    """
    if is_url(name):
        from .remote import open_url

        return open_url(name)
    stamp_of(name)  # a pipe in the place of a file would be waited for without end
    with reading(name):
        return cast(BinaryIO, Path(name).open("rb", buffering=0))


def stamp_of(name: str) -> Stamp:
    """Size and mark of a plain file. Raises as ``open_binary``."""
    if is_url(name):
        from .remote import stamp_url

        return Stamp(*stamp_url(name))
    with reading(name):
        found = Path(name).stat()
    if not stat.S_ISREG(found.st_mode):
        expected = "expected a file, got " + ("a folder" if stat.S_ISDIR(found.st_mode) else "a device or pipe")
        raise InputError(2106, "cannot read input", where=name, expected=expected)
    return Stamp(found.st_size, str(found.st_mtime_ns))


def is_folder(name: str) -> bool:
    """A folder has this name."""
    if is_url(name):
        from .remote import is_url_folder

        return is_url_folder(name)
    return Path(name).is_dir()


def exists(name: str) -> bool:
    """Something has this name."""
    if is_url(name):
        from .remote import url_exists

        return url_exists(name)
    return os.path.lexists(name)


def is_pattern(name: str) -> bool:
    """The name holds ``*``, ``?`` or ``[``, and nothing is called so."""
    return glob.has_magic(name) and not exists(name)


def matches(pattern: str) -> list[str]:
    """Files that fit a pattern, by name; ``**`` stands for any folders."""
    if is_url(pattern):
        from .remote import match_urls

        return match_urls(pattern)
    return sorted(n for n in glob.glob(pattern, recursive=True) if Path(n).is_file())  # noqa: PTH207  # keeps "./"


def files_below(folder: str) -> list[str]:
    """All files of a folder and of those in it, by name; not the hidden ones.

    Raises:
        InputError: 2106 unreadable, or a link that leads out of the folder: a folder from somebody else must not
            decide which other files of this machine are read.
    """
    if is_url(folder):
        from .remote import files_below_url

        return files_below_url(folder)
    home = Path(folder).resolve()
    found: list[str] = []
    with reading(folder):
        for root, folders, names in os.walk(folder, onerror=_fail):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for name in names:
                path = Path(root, name)
                if path.is_symlink() and not path.resolve().is_relative_to(home):
                    what = "a link leads out of the folder"
                    fix = "name the linked file itself, or copy it here"
                    raise InputError(2106, what, where=str(path), expected=f"got {path.resolve()}", fix=fix)
                if path.is_file() and not name.startswith("."):
                    found.append(str(path))
    return sorted(found, key=lambda n: Path(n).parts)


def join(folder: str, name: str) -> str:
    """A name inside a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder, name))


def _fail(error: OSError) -> Any:
    raise error
