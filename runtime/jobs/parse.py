"""One JSON line to an object, an id and a text.

In: bytes of one line. Out: values, or the one error that describes the line. Knows nothing of files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from ...core.errors import RowError

DIGITS: Final = 1000
"""Digits of a number; longer ones are refused before they are converted."""


class _DuplicateKeyError(Exception):
    pass


class _NumberError(Exception):
    pass


class _ConstantError(Exception):
    pass


def parse_object(data: bytes, where: str, *, ended: bool = True) -> dict[str, Any]:
    """A JSON object with unique keys.

    Raises:
        RowError: 2001 not UTF-8; 2002 not JSON, or a cut last line; 2003 not an object or a key twice;
            2010 nested too deeply or a number too large.
    """
    text = decode(data, where)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_constant
        )
    except _DuplicateKeyError as e:
        raise RowError(2003, "a key stands twice", where=where, expected=f"got {e} twice") from None
    except _NumberError as e:
        raise RowError(2010, "number too large", where=where, expected=str(e)) from None
    except _ConstantError as e:
        raise RowError(2002, "not JSON", where=where, expected=f"{e} is no JSON value") from None
    except RecursionError:
        raise RowError(2010, "nested too deeply", where=where) from None
    except ValueError as e:
        what = "not JSON" if ended else "last line is cut"
        raise RowError(2002, what, where=where, expected=str(e)) from e
    if not isinstance(value, dict):
        got = f"expected an object, got {type(value).__name__}"
        raise RowError(2003, "not a JSON object", where=where, expected=got)
    return value


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes to text.

    Raises:
        RowError: 2001.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        got = f"expected UTF-8, got 0x{data[e.start : e.end].hex()}"
        place = f"{where}, byte {e.start}"
        raise RowError(2001, "invalid UTF-8", where=place, expected=got, fix="convert the file to UTF-8") from e


def take_id(row: dict[str, Any], name: str, where: str) -> str | None:
    """The row's id as text; None where it has none.

    Raises:
        RowError: 2003 an id that is neither text nor whole number; 2009 a lone surrogate in it.
    """
    value = row.get(name)
    if value is None and name == "custom_id":
        value = row.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        got = f"expected text or a whole number, got {type(value).__name__}"
        raise RowError(2003, "id is of a wrong type", where=where, expected=got)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise RowError(2009, "id holds a lone surrogate", where=f"{where}, character {e.start}") from e
    return str(value)


def take_text(row: dict[str, Any], name: str, where: str) -> str:
    """The row's text, whatever it says.

    Raises:
        RowError: 2004 missing, null or not text.
    """
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name not in row:
        names = ", ".join(list(row)[:20]) or "no fields"
        expected = f"expected a field {name!r}, got {names}"
        fix = "name the field that holds the text with --text-field" if name == "text" else ""
        raise RowError(2004, f"field {name!r} is missing", where=where, expected=expected, fix=fix)
    got = "null" if value is None else type(value).__name__
    raise RowError(2004, f"field {name!r} is not text", where=where, expected=f"expected text, got {got}")


def take_columns(row: dict[str, Any], names: Sequence[str], where: str) -> dict[str, str | None]:
    """Columns to keep: strings as they are, other values as JSON, None for null and what is missing.

    Raises:
        RowError: 2009 a lone surrogate.
    """
    found: dict[str, str | None] = {}
    for name in names:
        value = row.get(name)
        found[name] = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            (found[name] or "").encode()
        except UnicodeEncodeError as e:
            place = f"{where}, character {e.start}"
            raise RowError(2009, f"field {name!r} holds a lone surrogate", where=place) from e
    return found


def too_large(size: int, limit: int, where: str) -> RowError:
    """2007."""
    expected = f"expected at most {limit} bytes, got {size}"
    return RowError(2007, "text too large", where=where, expected=expected, fix="split it")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise _DuplicateKeyError(repr(next(k for k in names if names.count(k) > 1)))
    return found


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _NumberError(f"expected at most {DIGITS} digits, got {len(digits)}")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _NumberError(f"expected a double, got {digits[:40]}")
    return value


def _constant(name: str) -> float:
    raise _ConstantError(name)
