"""One dense tensor in torch's file format, written and read without torch and without unpickling anything.

The format: a zip archive, stored, with ``data.pkl`` (a pickle that rebuilds the tensor), ``data/0`` (its bytes),
``byteorder`` and ``version``. The reader lists the pickle's instructions, runs none, and takes only the one sequence
that a plain two-dimensional tensor has. So what CVE-2025-62164 (sparse tensors whose indices are out of range) and
CVE-2026-24747 (instructions inside the allowed set) need is refused before anything is built.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...core.errors import InputError
from ...engines.base import F32
from .target import Dtype

MAX_BYTES: Final = 256 << 20
"""Of one payload, decoded."""

_STORAGE: Final[dict[Dtype, str]] = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}
_MAX_PICKLE: Final = 4096
_MEMO: Final = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "PROTO", "FRAME"}


def pack(rows: F32, dtype: Dtype) -> bytes:
    """Rows float32 [T,H] as what ``torch.load(..., weights_only=True)`` reads; the same bytes every time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, body in (
            ("data.pkl", _pickle(rows.shape[0], rows.shape[1], _STORAGE[dtype])),
            ("byteorder", b"little"),
            ("data/0", _narrow(rows, dtype).tobytes()),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), body)
    return out.getvalue()


def unpack(data: bytes) -> F32:
    """The tensor as float32 [T,H].

    Raises:
        InputError: 2140 not such a file; 2141 too large; 2142 something else than one dense tensor; 2143 its dtype;
            2144 its shape.
    """
    if len(data) > MAX_BYTES:
        raise InputError(2141, "payload too large", expected=f"expected at most {MAX_BYTES} bytes, got {len(data)}")
    files = _files(data)
    storage, rows, columns = _shape(files["data.pkl"])
    dtypes = [d for d, name in _STORAGE.items() if name == storage]
    if not dtypes:
        expected = f"expected {', '.join(_STORAGE.values())}, got {storage}"
        raise InputError(2143, "embeddings of a dtype that is not taken", where="prompt_embeds", expected=expected)
    width = 4 if dtypes[0] == "float32" else 2
    if rows < 1 or columns < 1 or rows * columns * width != len(files["data/0"]):
        expected = f"[{rows}, {columns}] of {width} bytes each, got {len(files['data/0'])} bytes"
        raise InputError(2144, "shape and bytes differ", where="prompt_embeds", expected=expected)
    return _widen(files["data/0"], dtypes[0]).reshape(rows, columns)


def _files(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {i.filename.partition("/")[2]: i for i in archive.infolist()[:16]}
            sizes = [found[name].file_size for name in ("data.pkl", "data/0")]
            stored = all(i.compress_type == zipfile.ZIP_STORED for i in found.values())
            # A stored entry cannot be larger than the archive; a bomb must say so here, before it is read.
            if not stored or sizes[0] > _MAX_PICKLE or sum(sizes) > len(data):
                raise InputError(2140, "compressed, or larger than it says", where="prompt_embeds")
            if "byteorder" in found and archive.read(found["byteorder"]) != b"little":
                raise InputError(2140, "not little-endian", where="prompt_embeds")
            return {name: archive.read(found[name]) for name in ("data.pkl", "data/0")}
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, NotImplementedError, OSError, RuntimeError) as e:
        expected = "expected base64 of one tensor as torch.save writes it"
        raise InputError(2140, "not a tensor file", where="prompt_embeds", expected=expected) from e


def _shape(data: bytes) -> tuple[str, int, int]:
    """Storage class, rows, columns, when the pickle is that of one contiguous dense matrix."""
    try:
        steps = [(op.name, arg) for op, arg, _ in pickletools.genops(data) if op.name not in _MEMO]
    except Exception as e:  # bytes from outside: the module raises whatever it trips over
        raise InputError(2140, "damaged instructions", where="prompt_embeds") from e
    numbers = [arg for name, arg in steps if name in ("BININT", "BININT1", "BININT2") and isinstance(arg, int)]
    storage = [str(arg) for name, arg in steps if name == "GLOBAL" and str(arg).startswith("torch ")]
    if len(numbers) != 6 or len(storage) != 1 or _plain(steps) != _plain(_expected(storage[0])):
        names = ", ".join(str(arg) for name, arg in steps if name == "GLOBAL")[:200]
        fix = "send tensor.contiguous().to_dense() of two dimensions"
        raise InputError(2142, "not one dense tensor", where="prompt_embeds", expected=f"it calls {names}", fix=fix)
    count, offset, rows, columns, stride, step = numbers
    if (offset, step, stride, count) != (0, 1, columns, rows * columns):
        expected = f"[{rows}, {columns}] of {count} numbers, offset {offset}, strides {stride}, {step}"
        raise InputError(2144, "not a whole contiguous matrix", where="prompt_embeds", expected=expected)
    return storage[0].removeprefix("torch "), rows, columns


def _plain(steps: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [("INT", None) if name.startswith("BININT") else (name, arg) for name, arg in steps]


def _expected(storage: str) -> list[tuple[str, Any]]:
    body = _pickle(1, 1, storage.removeprefix("torch ")[:64])
    return [(op.name, arg) for op, arg, _ in pickletools.genops(body) if op.name not in _MEMO]


def _pickle(rows: int, columns: int, storage: str) -> bytes:
    """Protocol 2: ``_rebuild_tensor_v2(storage 0 on cpu, 0, (rows, columns), (columns, 1), False, OrderedDict())``."""

    def word(text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text.encode())) + text.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    name = b"(" + word("storage") + f"ctorch\n{storage}\n".encode() + word("0") + word("cpu")
    where = name + number(rows * columns) + b"tQ" + number(0)
    shape = number(rows) + number(columns) + b"\x86" + number(columns) + number(1) + b"\x86"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + where + shape + b"\x89ccollections\nOrderedDict\n)RtR."


def _narrow(rows: F32, dtype: Dtype) -> npt.NDArray[Any]:
    if dtype != "bfloat16":
        return np.ascontiguousarray(rows, dtype.replace("float", "<f").replace("32", "4").replace("16", "2"))
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    half: npt.NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")  # to the nearest, ties to even
    return half


def _widen(data: bytes, dtype: Dtype) -> F32:
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if dtype == "float32" else "<f2").astype(np.float32)
