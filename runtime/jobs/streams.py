"""Lines of a text file, plain or compressed, with bounded memory; reading can go on at a line found before.

In: a name. Out: lines as bytes, with positions. Knows nothing of JSON.
"""

from __future__ import annotations

import io
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, Self

import zstandard

from ...core.errors import InputError
from .storage import open_binary, reading

BOMB_RATIO: Final = 200
"""Text shrinks 2 to 20 times; what grows more than this while it is unpacked is no text."""
BOMB_FLOOR: Final = 64 << 20
"""Bytes that may come out before the ratio counts."""
_PIECE: Final = 2048
"""Bytes unpacked at once: a zstd block of 4 bytes may stand for 128 KiB."""
_BUFFER: Final = 1 << 20
_STEP: Final = 64 << 10
"""Bytes of text between two places where unpacking can begin; nearer ones are not remembered."""
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


class Place(NamedTuple):
    """Where a line begins.

    Attributes:
        lines: that come before it.
        offset: bytes of text before it.
        packed: bytes of the compressed file before the frame that holds it.
        frame: bytes of text before that frame.
    """

    lines: int = 0
    offset: int = 0
    packed: int = 0
    frame: int = 0


class LineReader:
    """Lines of one file that are not blank; of a line over ``limit`` bytes only its start is kept.

    Args:
        name: of the file; ``.gz`` and ``.zst`` are unpacked.
        limit: bytes of a line.
        on_bytes: hears every byte of the file as it lies on the disk, in order; seek is impossible then.

    Raises:
        InputError: 2103 corrupt, cut or a decompression bomb; 2106 unreadable. Also while lines are read.
    """

    def __init__(self, name: str, limit: int, on_bytes: Callable[[bytes], None] | None = None) -> None:
        self._name, self._limit = name, limit
        self._file = open_binary(name)
        weakref.finalize(self, self._file.close)
        self._source = _Told(self._file, on_bytes) if on_bytes else self._file
        self._packed: _Unpacked | None = None
        self._place = Place()
        self._open(self._place)

    def tell(self) -> Place:
        """Where the next line begins."""
        packed, frame = self._packed.frame_before(self._place.offset) if self._packed else (0, 0)
        return Place(self._place.lines, self._place.offset, packed, frame)

    def seek(self, place: Place) -> None:
        """Go on at ``place``. A compressed file is unpacked from the frame before it, or on from here."""
        with self._faults():
            if self._packed is None:
                self._stream.seek(place.offset)
            else:
                here = self._place.offset
                if place.offset < here or place.frame > here:
                    self._open(place)
                    here = place.frame
                while here < place.offset and (skipped := self._stream.read(min(_BUFFER, place.offset - here))):
                    here += len(skipped)
            self._place = place

    def __iter__(self) -> Iterator[Line]:
        while line := self._next():
            if line.data and not line.data.isspace():
                yield line

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Line | None:
        with self._faults():
            data = self._stream.readline(self._limit + 1)
            size, ended = len(data), data.endswith(b"\n")
            while not ended and size > self._limit and (rest := self._stream.readline(_BUFFER)):
                size, ended = size + len(rest), rest.endswith(b"\n")
        if not data:
            return None
        number = self._place.lines + 1
        self._place = Place(number, self._place.offset + size)
        data = data.removeprefix(_BOM) if number == 1 else data
        return Line(number, data[: self._limit].rstrip(b"\r\n"), size, ended)

    def _open(self, place: Place) -> None:
        """Begin at the frame of ``place``."""
        make = next((make for suffix, make in _MAKERS.items() if self._name.lower().endswith(suffix)), None)
        with self._faults():
            if make is None:
                raw: Any = self._source if isinstance(self._source, io.RawIOBase) else _Told(self._file)
            else:
                if place.packed:
                    self._file.seek(place.packed)
                elif self._place.offset:
                    self._file.seek(0)
                raw = self._packed = _Unpacked(self._source, self._name, make, place)
            self._stream = io.BufferedReader(raw, _BUFFER)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        with reading(self._name):
            try:
                yield
            except (EOFError, zlib.error, zstandard.ZstdError) as e:
                fix = "pack the file again"
                raise InputError(2103, "compressed file is damaged", where=self._name, expected=str(e), fix=fix) from e


class _Told(io.RawIOBase):
    """A file as a raw stream, and somebody who hears what is read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[bytes], None] = lambda data: None) -> None:
        super().__init__()
        self._file, self._on_bytes = file, on_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        data = self._file.read(len(buffer))
        self._on_bytes(data)
        buffer[: len(data)] = data
        return len(data)


class _Unpacked(io.RawIOBase):
    """Compressed frames end to end. A frame that is cut is an error, and so is what grows beyond reason."""

    def __init__(self, file: Any, name: str, make: Callable[[], Any], place: Place) -> None:
        super().__init__()
        self._file, self._name, self._make = file, name, make
        self._in, self._out = place.packed, place.frame
        self._frame: Any = None
        self._ready = self._left = b""
        self._frames = deque([(place.packed, place.frame)])

    def readable(self) -> bool:
        return True

    def frame_before(self, offset: int) -> tuple[int, int]:
        """Begin of the last frame that is known to begin at or before a byte of text; offsets asked for only grow."""
        while len(self._frames) > 1 and self._frames[1][1] <= offset:
            self._frames.popleft()
        return self._frames[0]

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        while not self._ready and (piece := self._left or self._file.read(_PIECE)):
            self._in += 0 if self._left else len(piece)
            self._left = b""
            self._feed(piece)
        if not self._ready and self._frame is not None:
            raise EOFError("the file ends in the middle of a compressed frame")
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def _feed(self, piece: bytes) -> None:
        if self._frame is None:
            if self._in > len(piece):
                piece = piece.lstrip(b"\0")  # gzip files may be padded to whole blocks
            if not piece:
                return
            if self._out - self._frames[-1][1] >= _STEP:
                self._frames.append((self._in - len(piece), self._out))
            self._frame = self._make()
        self._ready = self._frame.decompress(piece)
        self._out += len(self._ready)
        if self._out > BOMB_FLOOR and self._out > BOMB_RATIO * self._in:
            expected = f"expected at most {BOMB_RATIO} times its size, got {self._out} bytes so far"
            raise InputError(2103, "compressed file grows beyond reason", where=self._name, expected=expected)
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor().decompressobj()


_MAKERS: Final = {".gz": _gzip, ".zst": _zstd}
