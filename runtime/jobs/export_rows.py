"""A job's rows in other forms: frames end to end, JSON lines, NumPy, safetensors, a Hugging Face dataset.

In: rows of frames. Out: one file or one new folder, whole or not there. Error rows have no latents: JSON lines and
datasets keep them with their error, the other forms leave them out. Memory: one table of rows.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core import disk
from ...core.errors import EnvironmentFault, InputError
from ...core.files import atomic_folder
from .. import tlv
from ..codec import Codec, codec_name
from ..message import Message
from .commit import job_faults
from .export_forms import ExportForm
from .source import Source, open_source
from .table import StoredRow, read_info, read_table


@dataclass
class Written:
    """How much went out. ``left_out``: error rows that the form has no place for."""

    rows: int = 0
    left_out: int = 0
    latents: int = 0


def export_rows(folder: Path, form: ExportForm, out: Path, on_rows: Callable[[int], None] = lambda n: None) -> Written:
    """Write all rows of a job, table or file of frames to ``out``.

    Raises:
        InputError: 2111 latents in two forms, or in one that does not fit an array; what ``open_source`` raises.
        EnvironmentFault: 5008 ``out`` exists; 5004, 5005, 5007 the disk.
    """
    source = open_source(folder)
    if out.exists() or out.is_symlink():
        fix = "choose another path or remove it first"
        raise EnvironmentFault(5008, "destination already exists", where=str(out), fix=fix, exit_code=5)
    written = Written()
    if form in ("frames", "jsonl"):
        write = _frames if form == "frames" else _json
        with job_faults(out), replacing(out) as file:
            for row in source.rows():
                file.write(write(row, written))
                on_rows(1)
        return written
    with atomic_folder(out) as home:
        if form == "hf":
            from .export_dataset import write_dataset

            write_dataset(source, home, written, on_rows)
        elif form == "npy":
            _npy(source, home, written, on_rows)
        else:
            _safetensors(source, home, written, on_rows)
    return written


@contextmanager
def replacing(path: Path) -> Iterator[disk.NewFile]:
    """A new file that takes its name when the body ends well, and is on the disk then."""
    aside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with disk.NewFile(aside) as file:
            yield file
            file.sync()
        disk.rename(aside, path)
    except BaseException:
        with suppress(OSError):
            disk.remove(aside)
        raise
    disk.sync_folder(path.absolute().parent)


def _frames(row: StoredRow, written: Written) -> bytes:
    if row.message is None:
        written.left_out += 1
        return b""
    written.rows += 1
    written.latents += row.message.latents
    return named(row.message, row.custom_id).pack()


def named(message: Message, identifier: str) -> Message:
    """The message with the row's id in its first frame.

    Raises:
        FrameError: 1106 when it is packed: the id is too long for a frame.
    """
    first, *others = message.frames
    kept = tuple(e for e in first.extensions if e.type != tlv.CUSTOM_ID)
    return Message((replace(first, extensions=(*kept, tlv.custom_id(identifier))), *others))


def _json(row: StoredRow, written: Written) -> bytes:
    written.rows += 1
    written.latents += row.message.latents if row.message else 0
    return (json.dumps(row_facts(row, lambda data: base64.b64encode(data).decode())) + "\n").encode()


def row_facts(row: StoredRow, pack: Callable[[bytes], Any]) -> dict[str, Any]:
    """A row for people and other programs; ``frames`` are its frames end to end."""
    return {
        "custom_id": row.custom_id,
        "row_index": row.row_index,
        "status": "ok" if row.message else "error",
        "error_code": row.error_code or None,
        "error_message": row.error_message or None,
        "frames": pack(row.message.pack()) if row.message else None,
        "n_latents": row.message.latents if row.message else None,
        "n_tokens": row.n_tokens,
        "n_bytes_text": row.n_bytes_text,
        "truncated": row.truncated if row.message else None,
        **row.columns,
    }


def latents_of(message: Message, where: str) -> npt.NDArray[Any]:
    """Latents f16 (codec f16) or f32 (i8) [m, d_z], or codes u8 [m, D] (fsq); none for text.

    Raises:
        InputError: 2111 a codec that holds more than latents.
    """
    codec = message.frames[0].codec
    if codec == Codec.TEXT:
        return np.empty((0, 0), np.uint8)
    if codec == Codec.HYBRID:
        expected = f"got codec {codec_name(codec)}"
        fix = "export to frames or jsonl"
        raise InputError(2111, "row holds more than latents", where=where, expected=expected, fix=fix)
    if message.is_codes:
        return message.codes()
    return message.z().astype(np.float16 if codec == Codec.F16 else np.float32)


def _sound(rows: Iterator[StoredRow], written: Written) -> Iterator[tuple[StoredRow, npt.NDArray[Any]]]:
    for row in rows:
        if row.message is None:
            written.left_out += 1
            continue
        found = latents_of(row.message, f"row {row.row_index} (id {row.custom_id})")
        written.rows += 1
        written.latents += len(found)
        yield row, found


def _npy(source: Source, home: Path, written: Written, on_rows: Callable[[int], None]) -> None:
    """``latents.npy`` [all latents, d_z], to be mapped; ``rows.jsonl`` says which of them are whose."""
    size, form = _shape(source)
    dtype = np.dtype(form[1])
    array = np.lib.format.open_memmap(str(home / "latents.npy"), "w+", dtype, (size, form[0])) if size else None
    at = 0
    with disk.NewFile(home / "rows.jsonl") as file:
        for row, found in _sound(source.rows(), written):
            if len(found) and array is not None:
                array[at : at + len(found)] = _same_form(found, form, row)
            facts = {"custom_id": row.custom_id, "row_index": row.row_index, "start": at, "count": len(found)}
            file.write((json.dumps(facts | dict(row.columns)) + "\n").encode())
            at += len(found)
            on_rows(1)
    if array is not None:
        array.flush()


def _shape(source: Source) -> tuple[int, tuple[int, str]]:
    """Latents in all, and the width and type of the first ones."""
    total, form = 0, (0, "f4")
    for row in source.rows():
        if row.message is not None and row.message.latents:
            if not total:
                first = latents_of(row.message, f"row {row.row_index} (id {row.custom_id})")
                form = (first.shape[1], first.dtype.str)
            total += row.message.latents
    return total, form


def _same_form(found: npt.NDArray[Any], form: tuple[int, str], row: StoredRow) -> npt.NDArray[Any]:
    if (found.shape[1], found.dtype.str) != form:
        where = f"row {row.row_index} (id {row.custom_id})"
        expected = f"expected {form[1]} [m,{form[0]}], got {found.dtype.str} [m,{found.shape[1]}]"
        fix = "export to frames or jsonl"
        raise InputError(2111, "latents of this row do not fit those before", where=where, expected=expected, fix=fix)
    return found


def _safetensors(source: Source, home: Path, written: Written, on_rows: Callable[[int], None]) -> None:
    """One file for each table, so that the memory does not grow with the job."""
    from safetensors.numpy import save_file

    form: tuple[int, str] | None = None
    tables = source.tables or (None,)
    for number, table in enumerate(tables):
        rows = source.rows() if table is None else read_table(table)
        found: list[npt.NDArray[Any]] = []
        facts: list[StoredRow] = []
        for row, latents in _sound(rows, written):
            if len(latents):
                form = form or (latents.shape[1], latents.dtype.str)
                _same_form(latents, form, row)
            found.append(latents)
            facts.append(row)
            on_rows(1)
        width, dtype = form or (0, "f4")
        parts = [z for z in found if len(z)] or [np.empty((0, width), dtype)]
        ids, ends = _joined([r.custom_id for r in facts])
        tensors = {
            "latents": np.concatenate(parts),
            "latent_ends": np.cumsum([len(z) for z in found], dtype=np.int64),
            "row_index": np.array([r.row_index for r in facts], np.int64),
            "custom_ids": ids,
            "custom_id_ends": ends,
        }
        encoder = {} if table is None else {"encoder": read_info(table).encoder}
        save_file(tensors, str(home / f"part-{number:05d}.safetensors"), {"format": "latentwire-latents", **encoder})


def _joined(words: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """UTF-8 bytes end to end, and where each ends."""
    data = [w.encode() for w in words]
    return np.frombuffer(b"".join(data), np.uint8), np.cumsum([len(d) for d in data], dtype=np.int64)
