"""What a job is: everything that may change a byte of its output, and one hash of it.

How many workers, which devices and what else only changes how fast it goes is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from ...engines.bundle import Bundle
from ..options import CompressOptions
from .plan import Plan
from .sealed import canonical, plain
from .table import FORMAT, VERSION, TableInfo
from .task import GROUP

_NOT_COMPARED: Final = {"fingerprint", "fsync"}
_GENERATE_ONLY: Final = ("adapter", "decoder", "splice", "prefix", "cross", "tokenizer.json")
"""Starts of the names of files that only answer: a bundle with another decoder makes the same frames."""
SHOWN: Final = 8


def encoder_files(bundle: Bundle) -> dict[str, str]:
    """File of the bundle -> SHA-256, of those that may change a frame."""
    files = bundle.manifest.files.items()
    return {name: entry.sha256 for name, entry in files if not name.startswith(_GENERATE_ONLY)}


def describe_job(plan: Plan, options: CompressOptions, table: TableInfo, files: Mapping[str, str]) -> dict[str, Any]:
    """The facts of ``job.json``; ``fingerprint`` is the SHA-256 of all the others."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "table": {k: v for k, v in asdict(table).items() if k != "rows"},
        "encoder_files": dict(files),
        "options": {k: v for k, v in asdict(options).items() if k != "latents"},
        "group": GROUP,
        "inputs": [{"name": f.name, "bytes": f.size, "sha256": f.sha256, "rows": f.rows} for f in plan.files],
        "skipped": list(plan.skipped),
        "fields": asdict(plan.fields),
        "shard_rows": plan.shard_rows,
        "shard_count": len(plan.shards),
        "rows": plan.rows,
    }
    return {**plain(facts), "fingerprint": hashlib.sha256(canonical(facts)).hexdigest()}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """``options.codec: i8 in the folder, f16 asked for``, for every key that differs; the first few."""
    old, new = (dict(_flat({k: v for k, v in facts.items() if k not in _NOT_COMPARED})) for facts in (found, wanted))
    lines = [
        f"{key}: {old.get(key, 'nothing')} in the folder, {new.get(key, 'nothing')} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _NOT_COMPARED) != new.get(key, _NOT_COMPARED)
    ]
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def _flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{at}]")
    else:
        yield path, value
