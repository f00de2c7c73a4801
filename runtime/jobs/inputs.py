"""What the names on the command line stand for: files, folders, patterns, URLs, datasets.

In: names. Out: inputs in order, each of one kind. Opens nothing but the descriptions of datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from ...core.errors import InputError
from .storage import exists, files_below, is_folder, is_pattern, matches, stamp_of

KINDS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".ndjson.gz": "jsonl",
    ".ndjson.zst": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
}


@dataclass(frozen=True)
class Found:
    """One input.

    Attributes:
        kind: ``jsonl``, ``parquet``, ``arrow`` or ``text``.
        name: of the file.
        members: of kind ``text``: the files, as many as stood together.
    """

    kind: str
    name: str
    members: tuple[str, ...] = ()


def kind_of(name: str) -> str:
    """``jsonl``, ``parquet``, ``arrow``, ``text``; empty for anything else."""
    lower = name.lower()
    return next((kind for suffix, kind in KINDS.items() if lower.endswith(suffix)), "")


def find_inputs(names: Sequence[str]) -> list[Found]:
    """Inputs in the order given; those of a folder or pattern by name.

    Raises:
        InputError: 2101 a folder that claims to be a dataset and is none; 2104 nothing to read; 2106 no such file, no
            file at all, or a link out of its folder; 2110 a kind of file that is not read.
        EnvironmentFault: 5011 a package for this kind of URL is missing.
    """
    found = list(_grouped(file for name in names for file in _expand(name)))
    if not found:
        expected = f"expected at least one file of {', '.join(KINDS)}"
        raise InputError(2104, "no input", where=", ".join(names), expected=expected)
    return found


def _expand(name: str) -> Iterator[str]:
    if is_pattern(name):
        yield from (f for f in matches(name) if kind_of(f))
    elif is_folder(name):
        from .datasets_input import dataset_files

        files = dataset_files(name)
        yield from files if files is not None else (f for f in files_below(name) if kind_of(f))
    elif not exists(name):
        raise InputError(2106, "no such file", where=name, fix="check the path")
    elif not kind_of(name):
        expected = f"expected one of {', '.join(KINDS)}"
        raise InputError(2110, "not a kind of file that is read here", where=name, expected=expected)
    else:
        stamp_of(name)
        yield name


def _grouped(files: Iterable[str]) -> Iterator[Found]:
    for kind, group in groupby(map(_told, files), kind_of):
        if kind == "text":
            members = tuple(group)
            yield Found(kind, members[0], members)
        else:
            yield from (Found(kind, name) for name in group)


def _told(name: str) -> str:
    """Names stand in tables and messages."""
    try:
        name.encode()
    except UnicodeEncodeError as e:
        where = name.encode("utf-8", "backslashreplace").decode()
        raise InputError(2106, "name of a file is not UTF-8", where=where, fix="rename it") from e
    return name
