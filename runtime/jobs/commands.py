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
from . import summary
from .backend import Runner, open_backend
from .records import Fields
from .report import require_page, write_report
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
    report: Path | None = None


def run(what: Request, options: CompressOptions, how: RunOptions, as_json: bool) -> int:
    """Run a job, or what is left of it, print its totals and write its report."""
    require_free(what.out)
    if what.report:
        require_page(what.report)
    plan = plan_job(what.inputs, what.fields, what.shard_rows)
    start = time.perf_counter()
    job = describe(plan, read_bundle(what.bundle), options)
    with prompt_stop():
        manifest = run_job(job, what.out, open_backend(what.runner), what.machine, how)
    seconds = time.perf_counter() - start
    totals = manifest["totals"]
    if what.report:
        write_report(what.out, what.report)
    if as_json:
        print_json({"out": str(what.out), "seconds": round(seconds, 3), **manifest["table"], **totals})
    else:
        took = ("time", f"{seconds:.1f} s, {totals['rows'] / max(seconds, 1e-9):.1f} rows/s")
        print_table(["what", "how much"], [*summary.lines(manifest), took])
        if spread := summary.percentiles(manifest):
            print_table(summary.COLUMNS, spread, title="\nEach row")
        _say_errors(what.out, manifest)
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


def report(folder: Path, page: Path, as_json: bool) -> int:
    """Write the page of a finished job."""
    write_report(folder, page)
    if as_json:
        print_json({"report": str(page)})
    else:
        message(f"report in {page}")
    return EXIT_OK


def verify(folder: Path, as_json: bool) -> int:
    """Check a finished job; raises what is wrong with it."""
    found = verify_job(folder)
    if as_json:
        print_json(found)
    else:
        print_table(["what", "value"], list(found.items()))
    return EXIT_OK


def _say_errors(out: Path, manifest: dict[str, Any]) -> None:
    if not manifest["totals"]["errors"]:
        return
    message(f"{manifest['totals']['errors']} rows could not be compressed: {summary.failures(manifest)}")
    shown = 0
    for path in sorted((out / "errors").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if shown == SHOWN_ERRORS:
                    message(f"... all of them in {out / 'errors'}")
                    return
                message(json.loads(line)["error_message"])
                shown += 1
