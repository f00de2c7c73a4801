"""Bytes of a text file, plain or compressed, and its lines, with bounded memory.

In: a path. Out: lines as bytes. Knows nothing of JSON.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ...core.errors import InputError

BOMB_RATIO: Final = 200
"""Text shrinks 2 to 20 times; what grows more than this while it is unpacked is no text."""
BOMB_FLOOR: Final = 64 << 20
"""Bytes that may come out before the ratio counts."""
_PIECE: Final = 2048
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line without its newline; ``data`` is cut where ``size`` is larger.

    Attributes:
        number: from 1.
        size: bytes of the whole line.
        ended: a newline followed.
    """

    number: int
    data: bytes
    size: int
    ended: bool


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """Decompressed bytes of a ``.gz``, ``.zst`` or plain file.

    Raises:
        InputError: 2103 corrupt, cut or a decompression bomb; 2106 unreadable.
    """
    try:
        with path.open("rb") as file:
            try:
                yield io.BufferedReader(_unpacked(path, file, name), 1 << 20)
            except (gzip.BadGzipFile, EOFError, zlib.error) as e:
                fix = "pack the file again"
                raise InputError(2103, "compressed file is damaged", where=name, expected=str(e), fix=fix) from e
    except OSError as e:
        raise unreadable(name, e) from e


def unreadable(name: str, error: OSError) -> InputError:
    """2106 for a file that the system will not open or read."""
    return InputError(2106, "cannot read input", where=name, expected=error.strerror or str(error))


def lines(stream: BinaryIO, limit: int) -> Iterator[Line]:
    """Lines that are not blank; of a line over ``limit`` bytes only its start is kept."""
    number = 0
    while data := stream.readline(limit + 1):
        number += 1
        if number == 1:
            data = data.removeprefix(_BOM)
        size, ended = len(data), data.endswith(b"\n")
        while not ended and size > limit and (rest := stream.readline(1 << 20)):
            size, ended = size + len(rest), rest.endswith(b"\n")
        if not data.isspace() and data:
            yield Line(number, data[:limit].rstrip(b"\r\n"), size, ended)


def _unpacked(path: Path, file: BinaryIO, name: str) -> io.RawIOBase:
    if path.suffix == ".gz":
        return _Guarded(gzip.GzipFile(fileobj=file), file, name)
    if path.suffix == ".zst":
        return _Guarded(_Zstd(file, name), file, name)
    return io.FileIO(file.fileno(), closefd=False)


class _Guarded(io.RawIOBase):
    """Counts what comes out against what went in."""

    def __init__(self, inner: io.BufferedIOBase | io.RawIOBase, file: BinaryIO, name: str) -> None:
        self._inner, self._file, self._name, self._out = inner, file, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        data = self._inner.read(len(buffer)) or b""
        self._out += len(data)
        if self._out > BOMB_FLOOR and self._out > BOMB_RATIO * max(1, self._file.tell()):
            expected = f"expected at most {BOMB_RATIO} times its size, got {self._out} bytes so far"
            raise InputError(2103, "compressed file grows beyond reason", where=self._name, expected=expected)
        buffer[: len(data)] = data
        return len(data)


class _Zstd(io.RawIOBase):
    """Frames end to end. The package's own reader ends quietly where a file is cut; this one says so."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        import zstandard

        self._package, self._file, self._name = zstandard, file, name
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ready = b""
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._ready and (piece := self._left or self._file.read(_PIECE)):
            self._left = b""
            self._feed(piece)
        if not self._ready and self._begun:
            raise EOFError("the last zstd frame is cut")
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _feed(self, piece: bytes) -> None:
        try:
            self._ready = self._frame.decompress(piece)
        except self._package.ZstdError as e:
            fix = "pack the file again"
            raise InputError(2103, "compressed file is damaged", where=self._name, expected=str(e), fix=fix) from e
        self._begun = not self._frame.eof
        if self._frame.eof:
            self._left = self._frame.unused_data
            self._frame = self._package.ZstdDecompressor().decompressobj()
