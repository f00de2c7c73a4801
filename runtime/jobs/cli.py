"""``latentwire jobs`` and ``latentwire compress``: options and output only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import CodecName, Fallback, OnPoison, Protect, RunnerName, TooLong, VerifyName
from ..flags import Batch, BundleOption, Debug, Device, EngineOption, Json, Quiet, Threads, run_body
from .records import BadFile, DuplicateId
from .rows_cli import Folder, export_command, index_command, merge_command, report_command
from .specfile import SPEC_SUFFIX, read_spec

app = typer.Typer(help="Large compression jobs: run, look at, check.", no_args_is_help=True, add_completion=False)


def _inputs(context: typer.Context, inputs: list[str]) -> list[str]:
    """A file of settings stands for its inputs, and its other keys become defaults of the options."""
    if len(inputs) != 1 or not inputs[0].endswith(SPEC_SUFFIX):
        return inputs
    known = {p.name for p in context.command.params if p.name}
    found, settings = read_spec(Path(inputs[0]), known)
    context.default_map = settings
    return found


for name, command in (
    ("report", report_command),
    ("index", index_command),
    ("export", export_command),
    ("merge", merge_command),
):
    app.command(name)(command)


@app.command("run")
def run_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, patterns or URLs of texts, or one SPEC.toml.", is_eager=True, callback=_inputs
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the frames: new, or of the same job.")],
    bundle: BundleOption,
    codec: Annotated[
        CodecName,
        typer.Option(help="i8: small. f16: exact. fsq: tiny, if trained. hybrid: names and numbers as they are. text."),
    ] = "i8",
    latents: Annotated[int | None, typer.Option(min=1, help="Latents a text. Default: as the bundle says.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Frames at least this many times smaller than their text, or the row fails.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Frames of a text take no more bytes than this, or the row fails.")
    ] = None,
    protect: Annotated[
        Protect,
        typer.Option(help="Codec hybrid: names and numbers by rule, what stands in <keep>...</keep> marks, or both."),
    ] = "both",
    fallback: Annotated[
        Fallback,
        typer.Option(help="Send the text itself where it is smaller (size), or latents do not survive (check)."),
    ] = "off",
    min_fidelity: Annotated[
        float, typer.Option(min=0, max=1, help="For check: mean cosine of latents before and after their codec.")
    ] = 0.9,
    on_too_long: Annotated[
        TooLong,
        typer.Option(help="Text over the encoder's window: refuse the row, cut it, or send several frames."),
    ] = "error",
    id_field: Annotated[str, typer.Option(help="Field of the row's id.")] = "custom_id",
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    keep_columns: Annotated[
        list[str] | None, typer.Option(help="Fields to put beside the frames, as text: a,b. May be given again.")
    ] = None,
    on_duplicate_id: Annotated[
        DuplicateId, typer.Option(help="An id that stands twice: stop, do the first row only, or name the others ID#2.")
    ] = "error",
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Compress equal texts of a shard once.")] = False,
    on_bad_file: Annotated[BadFile, typer.Option(help="A damaged file: stop, or leave all of it out.")] = "stop",
    shard_rows: Annotated[int, typer.Option(min=1, help="Most rows of one output table.")] = 4096,
    batch_size: Batch = 16,
    device: Device = "cpu",
    engine: EngineOption = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes; 0: none. Default: one per device, on CPUs one per four cores."),
    ] = None,
    backend: Annotated[
        RunnerName, typer.Option(help="local: processes of this machine. ray: a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, or auto. Default: a cluster of its own, here.")
    ] = None,
    on_poison: Annotated[
        OnPoison, typer.Option(help="Rows that kill a worker again and again: find the row, or stop the job.")
    ] = "bisect",
    max_errors: Annotated[int | None, typer.Option(min=0, help="Stop when more rows than this are bad.")] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Stop when more than this share of all rows is bad.")
    ] = None,
    verify: Annotated[
        VerifyName, typer.Option(help="How shards of an earlier run are checked: by size, or read in full.")
    ] = "size",
    no_fsync: Annotated[
        bool, typer.Option("--no-fsync", help="Faster on slow disks; a power cut may cost finished shards.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another or a finished job in OUT.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a report of the finished job here: one HTML page.", metavar="FILE.html")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress texts into frames.

    Reads JSONL (plain, .gz, .zst) with {"custom_id": "a7", "text":
    "..."}, Parquet with the same columns, plain text files, datasets that
    Hugging Face saved on disk, and folders of these; local, or anything
    that fsspec reaches. Writes Parquet tables of frames, one row per input
    row in input order; a row that cannot be compressed stays in place with
    its error, and a copy of it goes to OUT/errors.

    A job that was stopped or killed goes on with the same command, and
    gives the same bytes. OUT/manifest.json is written last: a folder
    without it is not finished. SPEC.toml holds `inputs` and any of these
    options, with _ for -; options of the command line win.

    Exit status: 0 all rows fine, 3 finished with bad rows, 4 too many bad
    rows, 5 something does not fit, 6 the machine, 74 the disk, 75 another
    process works in OUT, 130 and 143 stopped.

    Examples:

      latentwire compress docs.jsonl -o out/ --bundle bundle/

      latentwire compress a.parquet notes/ -o out/ --codec f16 --on-too-long chunk

      latentwire compress docs.jsonl -o out/ --codec hybrid --ratio 4 --fallback size

      latentwire jobs run job.toml --max-error-rate 0.01 --report report.html

      latentwire jobs run docs/ -o out/ --device cuda:0,cuda:1

      latentwire jobs run "s3://bucket/docs/*.jsonl.zst" -o out/ --keep-columns title,url
    """

    def body() -> int:
        from ..options import CompressOptions, Machine
        from .backend import Runner
        from .budget import Budget
        from .commands import Request, run
        from .records import Fields, split_names
        from .run import RunOptions

        options = CompressOptions(
            codec, latents, on_too_long, batch_size, ratio, max_bytes, protect, fallback, min_fidelity
        )
        how = RunOptions(overwrite, not no_fsync, verify, Budget(max_errors, max_error_rate))
        keep = split_names(keep_columns or [])
        fields = Fields(id_field, text_field, keep, on_duplicate_id, dedupe, on_bad_file)
        runner = Runner(backend, workers, on_poison, address)
        machine = Machine(device, engine, threads)
        what = Request(tuple(inputs), out, bundle, fields, shard_rows, machine, runner, report)
        return run(what, options, how, as_json)

    run_body(body, quiet, debug)


@app.command("status")
def status_command(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """Show how far a job is. Takes no lock and may be asked at any time.

    Exit status: 0 finished, 3 finished with bad rows, 1 not finished.

    Examples:

      latentwire jobs status out/

      watch latentwire jobs status out/
    """

    def body() -> int:
        from .commands import status

        return status(folder, as_json)

    run_body(body, False, debug)


@app.command("verify")
def verify_command(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """Read a finished job in full and compare it with what it says of itself.

    Every record, hash, page checksum and frame; rows in order and counted;
    files that belong to nobody.

    Exit status: 0 sound, 5 not.

    Examples:

      latentwire jobs verify out/

      latentwire jobs verify out/ --json
    """

    def body() -> int:
        from .commands import verify

        return verify(folder, as_json)

    run_body(body, False, debug)


if __name__ == "__main__":
    app()
