"""``latentwire jobs report | index | export | merge``, about jobs that are done: options and output only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import Debug, Json, Quiet, run_body
from .export_forms import ExportForm

Folder = Annotated[Path, typer.Argument(help="Folder of a job.", metavar="DIR")]


def report_command(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; replaced if it is there.", metavar="FILE.html")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a finished job's report: one HTML page that needs nothing else.

    Totals, compression, percentiles and histograms, failed rows by code
    with the first of each, options, machines, versions, inputs, shards.

    Examples:

      latentwire jobs report out/ -o report.html
    """

    def body() -> int:
        from .commands import report

        return report(folder, out, as_json)

    run_body(body, quiet, debug)


def index_command(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Show the row of this id; may be given again.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the index of a finished job: rows are found by their id then.

    Writes DIR/index.sqlite, or uses the one that is there if it belongs to
    these tables.

    Exit status: 0 all fine, 3 an id that no row has.

    Examples:

      latentwire jobs index out/

      latentwire jobs index out/ --id a7 --id b3
    """

    def body() -> int:
        from .row_commands import index

        return index(folder, ids or [], as_json)

    run_body(body, False, debug)


def export_command(
    folder: Annotated[Path, typer.Argument(help="Folder, table or file of frames.", metavar="FRAMES")],
    form: Annotated[
        ExportForm, typer.Option("--to", help="frames, jsonl: one file. npy, safetensors, hf (a dataset): a folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file or folder.")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the rows of a job in another form.

    frames: end to end, each text with its id. jsonl: one object a row,
    frames in base64. npy, safetensors: latents as arrays (codec fsq: its
    codes) and whose they are. hf: a dataset for datasets.load_from_disk.
    Error rows are left out, but not of jsonl and hf.

    Examples:

      latentwire jobs export out/ --to frames -o all.lwf

      latentwire jobs export out/ --to npy -o arrays/
    """

    def body() -> int:
        from .row_commands import export

        return export(folder, form, out, as_json)

    run_body(body, quiet, debug)


def merge_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished jobs, in order.", metavar="DIR...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make one finished job of several, with rows numbered through.

    They must have been made with one encoder and the same options, and no
    id may stand twice.

    Examples:

      latentwire jobs merge january/ february/ -o both/
    """

    def body() -> int:
        from .row_commands import merge

        return merge(folders, out, as_json)

    run_body(body, quiet, debug)
