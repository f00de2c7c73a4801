"""What is in a file or folder: a frame, a table or job of frames, a bundle, a checkpoint.

In: a path. Out: a JSON object. Everything is verified on the way; nothing is decoded further than it says.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ..core.errors import InputError, ModelError
from ..core.files import sha256_file
from ..engines.bundle import MANIFEST, Bundle, read_bundle
from . import tlv, wire
from .codec import MAX_TEXT, codec_name

SHOWN: Final = 20
"""Rows and frames that are listed one by one."""
META: Final = "meta.json"
CHECKPOINT: Final = "latentwire-checkpoint"
_MAX_HEADER: Final = 16 << 20
_LENGTH: Final = struct.Struct("<Q")


def inspect(path: Path) -> dict[str, Any]:
    """Tell what ``path`` is and describe it; the key ``kind`` names it.

    Raises:
        InputError: 2101, 2102, 2106, 2108 tables and jobs; 2110 none of the known kinds.
        FrameError: 1101-1109. BundleError: 4001-4009. ModelError: 3206 checkpoint metadata that cannot be read.
    """
    from .jobs.source import PARQUET_MAGIC, is_job_folder, magic

    if str(path) == "reference" and not path.exists():
        path = Path(__file__).resolve().parent.parent / "reference"
    if path.is_dir():
        if is_job_folder(path):
            return _job(path)
        if (path / MANIFEST).is_file():
            return _bundle(read_bundle(path))
        if (path / META).is_file():
            return _checkpoint(path)
        expected = "expected a folder made by latentwire compress, export or train"
        raise InputError(2110, "folder holds nothing of LatentWire", where=str(path), expected=expected)
    start = magic(path)
    if start[:4] == PARQUET_MAGIC:
        return _table(path)
    if start[:3] == wire.MAGIC:
        return _frames(path)
    expected = "expected a frame, a table of frames, or a folder that latentwire made"
    raise InputError(2110, "not a file of LatentWire", where=str(path), expected=expected)


def describe_frame(frame: wire.Frame) -> dict[str, Any]:
    """One frame as JSON values."""
    found: dict[str, Any] = {
        "version": f"{wire.MAJOR}.{frame.minor}",
        "codec": codec_name(frame.codec, frame.profile),
        "latents": frame.m,
        "d_z": frame.d_z,
        "model_id": frame.model_id.hex(),
        "payload_bytes": len(frame.payload),
        "frame_bytes": wire.HEADER_SIZE + len(tlv.pack(frame.extensions)) + len(frame.payload),
    }
    flags = [n for bit, n in ((wire.TRUNCATED, "truncated"), (wire.FALLBACK, "fallback")) if frame.flags & bit]
    extensions = dict(tlv.describe(t) for t in frame.extensions)
    return found | ({"flags": flags} if flags else {}) | ({"extensions": extensions} if extensions else {})


def _frames(path: Path) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    count = 0
    with path.open("rb") as stream:
        for frame in wire.read_frames(stream):
            count += 1
            if count <= SHOWN:
                shown.append(describe_frame(frame))
    return {"kind": "frames", **_file(path), "frames": count, "shown": shown}


def _table(path: Path) -> dict[str, Any]:
    from .jobs.table import read_info, read_table

    info = read_info(path)
    shared = {"encoder": info.encoder, "model_id": info.model_id.hex(), "d_z": info.d_z, "latents": info.latents}
    return {"kind": "table of frames", **_file(path), **shared, **_rows(read_table(path))}


def _job(path: Path) -> dict[str, Any]:
    from .jobs.commit import JobFolder
    from .jobs.source import open_source

    source = open_source(path)
    manifest = JobFolder(path).read_manifest()
    kept: dict[str, Any] = {
        k: manifest[k] for k in ("table", "options", "inputs", "fingerprint", "totals") if k in manifest
    }
    files = [{"name": str(t.relative_to(path)), **_file(t)} for t in source.tables]
    return {"kind": "job of frames", "path": str(path), **kept, "files": files, **_rows(source.rows())}


def _rows(rows: Iterable[Any]) -> dict[str, Any]:
    """Counts over all rows, which are all checked, and the first few in full."""
    shown: list[dict[str, Any]] = []
    codecs: Counter[str] = Counter()
    count = errors = 0
    for row in rows:
        count += 1
        errors += row.message is None
        facts: dict[str, Any] = {"custom_id": row.custom_id}
        if row.message is None:
            facts["error"] = row.error_message
        else:
            first = row.message.frames[0]
            codecs[codec_name(first.codec, first.profile)] += 1
            facts |= {"codec": codec_name(first.codec, first.profile), "latents": row.message.latents}
            facts |= {"chunks": len(row.message.frames), "wire_bytes": len(row.message.pack())}
            facts |= {"text_bytes": row.n_bytes_text, "tokens": row.n_tokens, "truncated": row.truncated}
        if count <= SHOWN:
            shown.append(facts)
    return {"rows": count, "errors": errors, "codecs": dict(codecs), "shown": shown}


def _bundle(bundle: Bundle) -> dict[str, Any]:
    facts = bundle.manifest.to_json()
    files = [{"name": n, **entry} for n, entry in sorted(facts.pop("files").items())]
    graphs = {n: _signature(g) for n, g in facts.pop("graphs").items()}
    facts["encoder"]["model_id"] = bundle.manifest.encoder.model_id.hex()
    facts.pop("format")
    total = sum(f["bytes"] for f in files)
    return {"kind": "bundle", "path": str(bundle.path), "bytes": total, **facts, "graphs": graphs, "files": files}


def _signature(graph: dict[str, Any]) -> str:
    """``input_ids i64 [B,S], ... -> latents f32 [B,M,256]``; tensors of the cache are counted, not listed."""
    sides = []
    for side in ("inputs", "outputs"):
        tensors = [t for t in graph[side] if not t["name"].startswith(("past_", "present_"))]
        names = [f"{t['name']} {t['dtype']} [{','.join(map(str, t['dims']))}]" for t in tensors]
        hidden = len(graph[side]) - len(tensors)
        sides.append(", ".join(names + ([f"{hidden} cache tensors"] if hidden else [])))
    return " -> ".join(sides)


def _checkpoint(path: Path) -> dict[str, Any]:
    meta_path = path / META
    try:
        meta = json.loads(meta_path.read_bytes())
        if meta["format"] != CHECKPOINT:
            raise ValueError(f"format {meta['format']!r}")
    except (OSError, KeyError, TypeError, ValueError) as e:
        expected = f"expected a JSON object with format {CHECKPOINT}, got {e}"
        raise ModelError(3206, "checkpoint metadata cannot be read", where=str(meta_path), expected=expected) from e
    files = []
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".safetensors", ".onnx", ".json")):
        weights = _weights(file) if file.suffix == ".safetensors" else {}
        files.append({"name": file.name, **_file(file), **weights})
    meta.pop("format")
    return {"kind": "checkpoint", "path": str(path), **meta, "files": files}


def _weights(path: Path) -> dict[str, Any]:
    """Tensors and parameters, read from the header alone."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            header = json.loads(file.read(length)) if length <= min(_MAX_HEADER, MAX_TEXT) else {}
        header.pop("__metadata__", None)
        sizes = [_product(t["shape"]) for t in header.values()]
        dtypes = sorted({t["dtype"] for t in header.values()})
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ModelError(3206, "weights have no readable header", where=str(path), expected=str(e)) from e
    return {"tensors": len(sizes), "parameters": sum(sizes), "dtypes": dtypes}


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
