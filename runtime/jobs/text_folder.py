"""Plain text files, one document each: neighbours in the list of inputs are one input, whose rows are the files.

A million small files would else be a million shards. Which files they are stands in the plan's row book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ...core.errors import InputError, RowError
from ..options import MAX_TEXT_BYTES
from .parse import decode, too_large
from .records import Fields, Record
from .storage import Stamp, open_binary, reading, stamp_of

Member = tuple[str, Stamp | None]
"""Name of a file, and its stamp when the plan was made."""


class TextRows:
    """Rows of a list of text files; see ``reader.RowReader``. Ids are the files' names.

    Args:
        members: ``members(row)`` gives the files from number ``row`` on.
        fields: columns to keep; a text file has none of them.
        on_bytes: hears every byte of every file, after its name.

    Raises:
        InputError: 2105 a file is not as it was when the plan was made; 2106 unreadable. While rows are read.
    """

    def __init__(
        self,
        members: Callable[[int], Iterable[Member]],
        fields: Fields,
        on_bytes: Callable[[bytes], None] | None = None,
    ) -> None:
        self._members, self._fields, self._on_bytes = members, fields, on_bytes
        self._row = 0
        self._left = iter(members(0))

    def tell(self) -> tuple[int, ...]:
        """Number of the next file, from 0."""
        return (self._row,)

    def seek(self, at: Sequence[int]) -> None:
        """Go on at file ``at[0]``."""
        if at[0] != self._row:
            self._row, self._left = at[0], iter(self._members(at[0]))

    def __iter__(self) -> Iterator[Record]:
        for name, stamp in self._left:
            self._row += 1
            yield self._read(name, stamp)

    def close(self) -> None:
        """Nothing is open between two rows."""

    def _read(self, name: str, stamp: Stamp | None) -> Record:
        columns = dict.fromkeys(self._fields.keep)
        found = stamp_of(name)
        if stamp is not None and found != stamp:
            raise changed(name, f"expected {stamp.size} bytes, got {found.size}, or written again meanwhile")
        file = open_binary(name)
        try:
            with reading(name):
                data = file.read(min(found.size, MAX_TEXT_BYTES + 4))
        finally:
            file.close()
        if self._on_bytes:
            self._on_bytes(f"{name}\n{found.size}\n".encode() + data)
        try:
            if found.size > MAX_TEXT_BYTES + 3:
                raise too_large(found.size, MAX_TEXT_BYTES, name)
            return Record(name, name, 1, decode(data, name), columns=columns)
        except RowError as e:
            return Record(name, name, 1, None, e, data[:1000], columns)


def changed(name: str, expected: str) -> InputError:
    """2105."""
    fix = "let nothing write to the input while the job runs, and start again"
    return InputError(2105, "input changed since the plan", where=name, expected=expected, fix=fix)
