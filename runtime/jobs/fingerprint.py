"""What a job is: everything that may change a byte of its output, and one hash of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ..options import CompressOptions
from ..pipeline import Pipeline
from .plan import Plan
from .table import FORMAT, VERSION, TableInfo


def describe_job(plan: Plan, options: CompressOptions, info: TableInfo, pipe: Pipeline) -> dict[str, Any]:
    """The facts of ``job.json``; ``fingerprint`` covers all of them but the engine."""
    tokenizer = pipe.bundle.manifest.files["encoder_tokenizer.json"].sha256
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "table": {k: v for k, v in asdict(info).items() if k != "rows"},
        "tokenizer": tokenizer,
        "options": {k: v for k, v in asdict(options).items() if k != "latents"},
        "inputs": [{"name": f.name, "bytes": f.size, "sha256": f.sha256, "rows": f.rows} for f in plan.files],
        "fields": asdict(plan.fields),
        "shard_rows": [s.rows for s in plan.shards],
    }
    return {**facts, "engine": pipe.engine.name, "fingerprint": hashlib.sha256(canonical(facts)).hexdigest()}


def canonical(facts: object) -> bytes:
    """JSON bytes that do not depend on the order of keys, for fingerprints."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
