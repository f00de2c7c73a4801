"""Files behind URLs, by fsspec: ``s3://``, ``gs://``, ``https://``, ``hf://``, ``memory://`` and many more.

Which packages, keys and settings a store needs is fsspec's business; see its documentation. Every failure becomes
InputError 2106, as each store has errors of its own kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ...core.errors import InputError
from ...core.extras import needs
from .storage import reading


def open_url(url: str) -> BinaryIO:
    """An open file that can be sought."""
    with _store(url) as (fs, path):
        file: BinaryIO = fs.open(path, "rb")
    if not file.seekable():
        file.close()
        what, fix = "the store cannot seek in this file", "copy it here first"
        raise InputError(2106, what, where=url, fix=fix)
    return file


def stamp_url(url: str) -> tuple[int, str]:
    """Bytes, and what changes when the file does."""
    with _store(url) as (fs, path):
        fs.invalidate_cache()  # else a file that was written again looks as before
        info = fs.info(path)
        if info["type"] != "file" or info.get("size") is None:
            raise OSError(f"expected a file of known size, got {info['type']}")
        return int(info["size"]), str(fs.ukey(path))


def is_url_folder(url: str) -> bool:
    """The store has a folder of this name."""
    with _store(url) as (fs, path):
        try:
            return bool(fs.info(path)["type"] == "directory")  # isdir of some stores downloads the whole file to see
        except FileNotFoundError:
            return False


def url_exists(url: str) -> bool:
    """The store has something of this name."""
    with _store(url) as (fs, path):
        return bool(fs.exists(path))


def match_urls(pattern: str) -> list[str]:
    """URLs of the files that fit."""
    with _store(pattern) as (fs, path):
        files = [n for n, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
        hidden = path.rpartition("/")[2].startswith(".")  # as of a shell, only who asks for them gets them
        return sorted(fs.unstrip_protocol(n) for n in files if hidden or not n.rpartition("/")[2].startswith("."))


def files_below_url(url: str) -> list[str]:
    """URLs of all files below a folder; not the hidden ones."""
    with _store(url) as (fs, path):
        below = [(n, n[len(path) :].split("/")) for n in fs.find(path)]
        return sorted(fs.unstrip_protocol(n) for n, parts in below if not any(p.startswith(".") for p in parts))


@contextmanager
def _store(url: str) -> Iterator[tuple[Any, str]]:
    with needs("remote"):
        from fsspec.core import url_to_fs
    with reading(url), needs("remote"):
        yield url_to_fs(url)
