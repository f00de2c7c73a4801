"""What the commands about jobs do once their options are read: run, print, and say how it went."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...core.console import message, print_json, print_table
from ...core.errors import EXIT_OK, EXIT_ROW_ERRORS
from ...engines.bundle import read_bundle
from ..options import CompressOptions, Machine
from .backend import Runner, open_backend
from .records import Fields
from .resume import require_free
from .run import RunOptions, describe, plan_job, run_job
from .status import FINISHED, read_status
from .stopping import prompt_stop
from .verify import verify_job

SHOWN_ERRORS: Final = 10
EXIT_UNFINISHED: Final = 1


@dataclass(frozen=True)
class Request:
    """What to compress, with what, and where to put it."""

    inputs: tuple[str, ...]
    out: Path
    bundle: Path
    fields: Fields
    shard_rows: int
    machine: Machine
    runner: Runner


def run(what: Request, options: CompressOptions, how: RunOptions, as_json: bool) -> int:
    """Run a job, or what is left of it, and print its totals."""
    require_free(what.out)
    plan = plan_job(what.inputs, what.fields, what.shard_rows)
    start = time.perf_counter()
    job = describe(plan, read_bundle(what.bundle), options)
    with prompt_stop():
        manifest = run_job(job, what.out, open_backend(what.runner), what.machine, how)
    seconds = time.perf_counter() - start
    totals = manifest["totals"]
    if as_json:
        print_json({"out": str(what.out), "seconds": round(seconds, 3), **manifest["table"], **totals})
    else:
        print_table(["what", "how much"], _totals(totals, options, seconds))
        _say_errors(what.out, totals)
    return EXIT_ROW_ERRORS if totals["errors"] else EXIT_OK


def status(folder: Path, as_json: bool) -> int:
    """Print how far a job is."""
    found = read_status(folder)
    if as_json:
        print_json(found)
    else:
        print_table(["what", "value"], [(k, v) for k, v in found.items() if v is not None])
    if found["state"] != FINISHED:
        return EXIT_UNFINISHED
    return EXIT_ROW_ERRORS if found["rows_error"] else EXIT_OK


def verify(folder: Path, as_json: bool) -> int:
    """Check a finished job; raises what is wrong with it."""
    found = verify_job(folder)
    if as_json:
        print_json(found)
    else:
        print_table(["what", "value"], list(found.items()))
    return EXIT_OK


def _totals(totals: dict[str, Any], options: CompressOptions, seconds: float) -> list[tuple[str, str]]:
    rows = totals["rows"] - totals["errors"]
    text, sent = totals["text_bytes"], totals["wire_bytes"]
    factor = f" ({sent / text:.2f} times the text)" if text else ""
    lines = [
        ("rows compressed", f"{rows} of {totals['rows']}"),
        ("text", f"{text:,} bytes, {totals['tokens']:,} tokens"),
        (f"frames, codec {options.codec}", f"{sent:,} bytes{factor}"),
        ("latents", f"{totals['latents']:,} in place of {totals['tokens']:,} tokens"),
    ]
    lines += [("asked for", ", ".join(_asked(options)))] if _asked(options) else []
    lines += [("sent as text", f"{totals['fallback']} rows")] if totals["fallback"] else []
    lines += [("chunked", f"{totals['chunks']} frames")] if totals["chunks"] > rows else []
    lines += [("truncated", f"{totals['truncated']} rows")] if totals["truncated"] else []
    return [*lines, ("time", f"{seconds:.1f} s, {totals['rows'] / max(seconds, 1e-9):.1f} rows/s")]


def _asked(options: CompressOptions) -> list[str]:
    """The rate, as it was asked for; each row keeps it or is an error."""
    asked = [f"{options.latents} latents a text"] if options.latents is not None else []
    asked += [f"text at least {options.ratio:g} times the frames"] if options.ratio is not None else []
    return asked + ([f"at most {options.max_bytes} bytes a text"] if options.max_bytes is not None else [])


def _say_errors(out: Path, totals: dict[str, Any]) -> None:
    if not totals["errors"]:
        return
    codes = ", ".join(f"{code} x {n}" for code, n in totals["errors_by_code"].items())
    message(f"{totals['errors']} rows could not be compressed: {codes}")
    shown = 0
    for path in sorted((out / "errors").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if shown == SHOWN_ERRORS:
                    message(f"... all of them in {out / 'errors'}")
                    return
                message(json.loads(line)["error_message"])
                shown += 1
