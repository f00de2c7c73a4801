"""``latentwire compress | generate | inspect | demo``: options and output only; the runtime does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .choices import BackendName, CodecName, TooLong

app = typer.Typer(help="Texts to frames, frames to answers.", no_args_is_help=True)

BundleOption = Annotated[
    Path, typer.Option("--bundle", "-b", envvar="LATENTWIRE_BUNDLE", help="Folder made by `latentwire export`.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Computing threads. Default: all.")]
Device = Annotated[str, typer.Option(help="cpu, cuda (the first GPU) or cuda:N.")]
Backend = Annotated[
    BackendName,
    typer.Option(help="Engine. auto: TensorRT if the bundle has a plan and the device is a GPU, else ONNX Runtime."),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Texts or prompts that run together.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("compress")
def compress_command(
    inputs: Annotated[list[str], typer.Argument(help="Files or folders of texts.", metavar="INPUT...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the frames.")],
    bundle: BundleOption,
    codec: Annotated[
        CodecName, typer.Option(help="i8: small. f16: exact. fsq: tiny, if trained. text: as it is.")
    ] = "i8",
    latents: Annotated[int | None, typer.Option(min=1, help="Latents a text. Default: as the bundle says.")] = None,
    on_too_long: Annotated[
        TooLong,
        typer.Option(help="Text over the encoder's window: refuse the row, cut it, or send several frames."),
    ] = "error",
    id_field: Annotated[str, typer.Option(help="Field of the row's id.")] = "custom_id",
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    shard_rows: Annotated[int, typer.Option(min=1, help="Most rows of one output table.")] = 4096,
    batch_size: Batch = 16,
    device: Device = "cpu",
    backend: Backend = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier job in OUT.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress texts into frames.

    Reads JSONL (plain, .gz, .zst) with {"custom_id": "a7", "text":
    "..."}, Parquet with the same columns, plain text files, or folders of
    these. Writes Parquet tables of frames, one row per input row in input
    order; a row that cannot be compressed stays in place with its error,
    and a copy of it goes to OUT/errors.

    Exit status: 0 all rows fine, 3 finished with bad rows, other numbers
    are errors of the whole job.

    Examples:

      latentwire compress docs.jsonl -o out/ --bundle bundle/

      latentwire compress a.parquet notes/ -o out/ --codec f16 --on-too-long chunk
    """

    def body() -> int:
        from . import commands
        from .jobs.records import Fields
        from .options import CompressOptions, Machine

        options = CompressOptions(codec, latents, on_too_long, batch_size)
        what = commands.CompressRun(tuple(inputs), out, bundle, Fields(id_field, text_field), shard_rows, overwrite)
        return commands.compress(what, options, Machine(device, backend, threads), as_json)

    _run(body, quiet, debug)


@app.command("generate")
def generate_command(
    frames: Annotated[Path, typer.Argument(help="Folder, table or file of frames.", metavar="FRAMES")],
    bundle: BundleOption,
    question: Annotated[list[str] | None, typer.Option("--question", help="Ask this; may be given again.")] = None,
    questions: Annotated[
        str | None, typer.Option("--questions", help='JSONL of {"custom_id": "a7", "question": "..."}.')
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the answers to this JSONL file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer, in tokens.")] = 16,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer here; default: end of the line.")] = None,
    batch_size: Batch = 16,
    device: Device = "cpu",
    backend: Backend = "auto",
    threads: Threads = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each answer while it is made.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer questions from frames.

    FRAMES is a folder or table that `compress` wrote, or a file of frames
    end to end. Each question is asked about every row, or, in a file of
    questions, about the row that its custom_id names.

    Exit status: 0 all answered, 3 some could not be.

    Examples:

      latentwire generate out/ --question "Who is it about?" --bundle bundle/

      latentwire generate out/ --questions q.jsonl --json > answers.jsonl
    """
    if not question and not questions:
        raise typer.BadParameter("ask something with --question or --questions")

    def body() -> int:
        from . import commands
        from .options import GenerateOptions, Machine

        options = GenerateOptions(max_new_tokens, tuple(stop) if stop else ("\n",), batch_size)
        what = commands.GenerateRun(frames, bundle, tuple(question or ()), questions, out, stream)
        return commands.generate(what, options, Machine(device, backend, threads), as_json)

    _run(body, quiet, debug)


@app.command("inspect")
def inspect_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="File or folder.", metavar="PATH")],
    parity: Annotated[
        bool, typer.Option("--parity", help="Bundles: compare with the LLM, on every engine that is here.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a frame, a table or job of frames, a bundle or a
    checkpoint, and verify it.

    With --parity a bundle is judged again on this machine: weights, hidden
    states, logits and tokens against the LLM it was made of; batches,
    padding, cache and refilled rows against single runs. Needs the extra
    `export` and the LLM.

    Examples:

      latentwire inspect message.lwf

      latentwire inspect out/ --json

      latentwire inspect bundle/

      latentwire inspect bundle/ --parity
    """
    if parity:
        # Judging is the exporter's; this folder knows the name of that command and nothing else of it.
        command = context.find_root().command.get_command(context, "parity")  # type: ignore[attr-defined]
        words = [str(path), *(["--json"] if as_json else []), *(["--debug"] if debug else [])]
        with command.make_context("parity", words, parent=context) as inner:
            command.invoke(inner)
        return

    def body() -> int:
        from . import commands

        return commands.inspect(path, as_json)

    _run(body, False, debug)


@app.command("engines")
def engines_command(as_json: Json = False, debug: Debug = False) -> None:
    """Show which engines can run bundles on this machine, and what the
    others lack.

    Examples:

      latentwire engines

      latentwire engines --json
    """

    def body() -> int:
        from . import commands

        return commands.engines(as_json)

    _run(body, False, debug)


@app.command("demo")
def demo_command(
    llm: Annotated[str, typer.Option(help="Language model, see `latentwire models list`.")] = "smollm2-135m",
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's files in this new folder.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each path; the median counts.")] = 3,
    device: Device = "cpu",
    backend: Backend = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress real documents, answer questions from the bytes in a second
    process, compare with full text.

    Adds the embedded language model and exports the shipped checkpoint if
    they are not there yet (minutes the first time, nothing after that).
    Needs no torch.

    Examples:

      latentwire demo

      latentwire demo --json --keep demo-files/
    """

    def body() -> int:
        from .demo import run
        from .options import Machine

        return run(llm, keep, rounds, Machine(device, backend), as_json)

    _run(body, quiet, debug)


def _run(body: Callable[[], int], quiet: bool, debug: bool) -> None:
    from ..core.console import configure, run_cli

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


if __name__ == "__main__":
    app()
