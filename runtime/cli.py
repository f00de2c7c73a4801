"""``latentwire compress | generate | inspect | engines | doctor | demo``: options and output only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .choices import Rule
from .flags import Batch, Debug, Device, EngineOption, Json, Quiet, Threads, run_body
from .jobs.cli import run_command

app = typer.Typer(help="Texts to frames, frames to answers.", no_args_is_help=True)
app.command("compress")(run_command)


@app.command("generate")
def generate_command(
    context: typer.Context,
    frames: Annotated[Path, typer.Argument(help="Folder, table or file of frames.", metavar="FRAMES")],
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", envvar="LATENTWIRE_BUNDLE", help="Folder made by `latentwire export`."),
    ] = None,
    llm: Annotated[
        list[str] | None,
        typer.Option("--llm", help="Instead: the shipped checkpoint for this LLM, exported once; may be repeated."),
    ] = None,
    question: Annotated[list[str] | None, typer.Option("--question", help="Ask this; may be given again.")] = None,
    questions: Annotated[
        str | None, typer.Option("--questions", help='JSONL of {"custom_id": "a7", "question": "..."}.')
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the answers to this JSONL file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer, in tokens.")] = 16,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer here; default: end of the line.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="Draw tokens; 0: take the likeliest.")] = 0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1, help="Draw among tokens of this joint probability.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    batch_size: Batch = 16,
    device: Device = "cpu",
    engine: EngineOption = "auto",
    threads: Threads = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each answer while it is made.")] = False,
    also: Annotated[
        list[Path] | None, typer.Option("--also", help="Bundle of a further LLM for the same frames; may be repeated.")
    ] = None,
    ensemble: Annotated[
        Rule | None, typer.Option(help="How one of their answers is chosen, default joint: scored by all of them.")
    ] = None,
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

      latentwire generate out/ --question "Who?" -b llama/ --also gemma/ --ensemble joint

      latentwire generate out/ --question "Who?" --llm smollm2-135m --llm gemma-3-270m --stream
    """
    if not question and not questions:
        raise typer.BadParameter("ask something with --question or --questions")
    source = context.get_parameter_source("bundle")
    # A default of the environment does not join LLMs that were named here.
    own = bundle and not (llm and source and source.name == "ENVIRONMENT")
    bundles = (*([bundle] if bundle and own else []), *(also or ()))
    if not bundles and not llm:
        raise typer.BadParameter("say who answers with --bundle or --llm")
    if ensemble and len(bundles) + len(llm or ()) < 2:
        raise typer.BadParameter("--ensemble needs a further LLM: --also BUNDLE, or --llm twice")
    if stream and (as_json or out):
        raise typer.BadParameter("--stream prints words as they come; leave out --json and --out")

    def body() -> int:
        from . import commands
        from .options import GenerateOptions, Machine

        options = GenerateOptions(
            max_new_tokens,
            tuple(stop) if stop else ("\n",),
            batch_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        asked = (frames, bundles, tuple(llm or ()), tuple(question or ()), questions, out, stream)
        what = commands.GenerateRun(*asked, ensemble or "joint")
        return commands.generate(what, options, Machine(device, engine, threads), as_json)

    run_body(body, quiet, debug)


@app.command("inspect")
def inspect_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="File or folder.", metavar="PATH")],
    parity: Annotated[
        bool, typer.Option("--parity", help="Bundles: compare with the LLM, on every engine that is here.")
    ] = False,
    draw: Annotated[
        Path | None, typer.Option(help="Frames of one text, or a text: draw what is kept; FILE.html or FILE.png.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", envvar="LATENTWIRE_BUNDLE", help="With --draw: what reads them.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="With --draw: the text that a frame was made of.")] = None,
    question: Annotated[
        str, typer.Option(help="With --draw: also show which latents the answer hangs on.", show_default=False)
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a frame, a table or job of frames, a bundle or a
    checkpoint, and verify it.

    With --parity a bundle is judged again on this machine: weights, hidden
    states, logits and tokens against the LLM it was made of; batches,
    padding, cache and refilled rows against single runs. Needs the extra
    `export` and the LLM.

    With --draw the LLM is asked what latents hold: the tokens nearest to
    each, and, where the text is known, its names, numbers and long words,
    each left out of its sentence.

    Examples:

      latentwire inspect message.lwf

      latentwire inspect out/ --json

      latentwire inspect bundle/

      latentwire inspect bundle/ --parity

      latentwire inspect text.txt --draw kept.html --bundle bundle/
    """
    if draw and not bundle:
        raise typer.BadParameter("--draw needs --bundle: a frame alone is numbers")
    if parity:
        # Judging is the exporter's; this folder knows the name of that command and nothing else of it.
        command = context.find_root().command.get_command(context, "parity")  # type: ignore[attr-defined]
        words = [str(path), *(["--json"] if as_json else []), *(["--debug"] if debug else [])]
        with command.make_context("parity", words, parent=context) as inner:
            command.invoke(inner)
        return

    def body() -> int:
        if draw and bundle:
            from .drawing import draw as draw_kept

            draw_kept(path, bundle, draw, text, question, as_json)
            return 0
        from . import commands

        return commands.inspect(path, as_json)

    run_body(body, False, debug)


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

    run_body(body, False, debug)


@app.command("doctor")
def doctor_command(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Also compress and answer with this bundle, on each engine.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, what works on this machine, and what to
    install for the rest.

    Engines are tried, not guessed: each computes something, and a toy
    bundle is compressed for and answered.

    Exit status: 0 bundles run here, 6 they do not.

    Examples:

      latentwire doctor

      latentwire doctor --bundle bundle/ --json
    """

    def body() -> int:
        from .doctor import doctor

        return doctor(bundle, as_json)

    run_body(body, False, debug)


@app.command("demo")
def demo_command(
    llm: Annotated[str, typer.Option(help="Language model, see `latentwire models list`.")] = "smollm2-135m",
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's files in this new folder.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each path; the median counts.")] = 3,
    device: Device = "cpu",
    engine: EngineOption = "auto",
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

        return run(llm, keep, rounds, Machine(device, engine), as_json)

    run_body(body, quiet, debug)


if __name__ == "__main__":
    app()
