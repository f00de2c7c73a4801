"""``latentwire train | adapt | eval | diagnose``: options and output only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Train and measure checkpoints.", no_args_is_help=True)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file with training options.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder. If it holds a run, that run goes on.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Overrides one option: key=value.")] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step; the run can go on later.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this checkpoint; new schedule.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show config, batches, time and memory; train nothing.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an encoder and its adapters through frozen LLMs.

    The same command again resumes where the last checkpoint was written,
    with the same losses. OUT holds log.jsonl, last/ (to resume), best/
    (lowest held-out NLL from latents), config.toml and curves.png.
    Several GPUs: start it with torchrun or accelerate launch, as below.

    Examples:

      latentwire train --config run.toml --out runs/a

      latentwire train -c run.toml -o runs/b --set steps=2000 --set seed=1

      latentwire train -c run.toml -o runs/c --init runs/a/best

      torchrun --nproc-per-node 2 -m latentwire.cli train -c run.toml -o runs/d
    """
    from ..core.console import configure, run_cli
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .config import load
            from .train import Trainer
        found = load(config, [*(settings or ()), *([f"init={json.dumps(str(init))}"] if init else [])])
        if dry_run:
            from .preview import preview

            preview(found)
            return 0
        with Trainer(found, out) as trainer:
            trainer.train(until)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("adapt")
def adapt_command(
    context: typer.Context,
    llm: Annotated[str, typer.Option(help="The LLM: a name from `models list`, a folder, or hf:org/name.")],
    data: Annotated[
        list[Path] | None, typer.Option("--data", "-d", help="Questions, JSONL or JSONL.gz; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder. If it holds this run, that run goes on.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Whose encoder: a folder, or `reference`.")] = "reference",
    eval_data: Annotated[
        list[Path] | None, typer.Option(help="Held-out questions. Default: one context in ten of the data.")
    ] = None,
    prose: Annotated[
        list[Path] | None, typer.Option(help="Passages, Parquet. Default: the contexts of the questions.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 16,
    micro_batch: Annotated[int, typer.Option(min=1, help="Texts computed at once; fewer take less memory.")] = 8,
    questions: Annotated[int, typer.Option("--questions", "-n", min=2, help="Held-out questions asked.")] = 160,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the frozen LLM.")] = "bf16",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Computing threads; 0: torch's own choice.")] = 0,
    export: Annotated[Path | None, typer.Option(help="If the verdict is go, also export this bundle.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell parameters, memory and time; needs no data and no weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Teach one more LLM to read the latents of an encoder that stays as it is.

    Trains a new adapter alone, then asks held-out questions and says whether
    the LLM reads the latents: against no context, the first tokens, another
    text's latents and the full text. Frames that were sent before can be
    read by the new LLM too. The same command again goes on where it was
    stopped. Exit status 5 where the verdict is no-go.

    Examples:

      latentwire adapt --llm hf:Qwen/Qwen2.5-7B --dry-run

      latentwire adapt --llm gemma-3-270m -d train.jsonl.gz -o runs/gemma

      latentwire adapt --llm models/mine -d q.jsonl -o runs/m --export bundle/
    """
    if not dry_run and not (data and out):
        raise typer.BadParameter("give --data and --out, or --dry-run")

    from ..core.console import configure, message, run_cli
    from ..core.errors import EXIT_MISMATCH, EXIT_OK, EnvironmentFault
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .adapt import Request, adapt
            from .adapt_preview import preview
        request = Request(
            llm,
            checkpoint,
            data or (),
            out or Path(),
            eval_data or (),
            prose or (),
            steps,
            batch,
            micro_batch,
            questions,
            precision,
            device,
            seed,
            threads,
        )
        if dry_run:
            preview(request, as_json)
            return EXIT_OK
        if export and export.exists() and any(export.iterdir()):  # before hours of training, not after
            raise EnvironmentFault(5008, "folder exists", where=str(export), fix="another folder for --export")
        if not adapt(request, as_json):
            return EXIT_MISMATCH
        if export and out:
            # Exporting is another folder's; this one knows the names of its commands and nothing else of them.
            silent, told = ["--quiet"] if quiet else [], ["--json"] if as_json else []
            _run(context, "publish", [str(out / "best"), "--out", str(out / "published"), "--overwrite", *silent])
            _run(context, "export", [str(out / "published"), "--llm", llm, "--out", str(export), *silent, *told])
            message(f"bundle in {export}")
        return EXIT_OK

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


def _run(context: typer.Context, name: str, words: list[str]) -> None:
    """Another command of this program, in this process."""
    command = context.find_root().command.get_command(context, name)  # type: ignore[attr-defined]
    with command.make_context(name, words, parent=context) as inner:
        command.invoke(inner)


@app.command("eval")
def eval_command(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or `reference`: the one that ships.")],
    data: Annotated[list[Path], typer.Option("--data", "-d", help="Questions, JSONL or JSONL.gz; may be repeated.")],
    questions: Annotated[int, typer.Option("--questions", "-n", min=1, help="How many, in a seeded order.")] = 300,
    llm: Annotated[list[str] | None, typer.Option(help="Only these of the checkpoint's LLMs.")] = None,
    encoder: Annotated[str, typer.Option(help="Its second encoder of this kind: bytes.")] = "",
    rows: Annotated[str, typer.Option(help="Rows, with commas; default: all of the protocol.")] = "",
    protocol: Annotated[
        Literal["task-token", "one-shot"], typer.Option(help="How questions are asked.")
    ] = "task-token",
    example: Annotated[Path | None, typer.Option(help="one-shot: its worked example, first row of this file.")] = None,
    latents: Annotated[str, typer.Option(help="Further numbers of latents, as 16,64,1/4.")] = "",
    joint: Annotated[bool, typer.Option("--joint", help="Also let the LLMs choose among all their answers.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Greedy tokens an answer; 0: no F1 and EM.")] = 16,
    batch: Annotated[int, typer.Option(min=2, help="Texts in one pass.")] = 8,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="fp32: as exported.")] = "fp32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON; rows and a PNG beside it.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Also store the figures in meta.json.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare latents with no context, chosen tokens, another text's latents and full text.

    All rows use the same questions. CHECKPOINT is a folder, a run (its best
    checkpoint) or `reference`. Each question is a JSON object with context,
    question and answers. With --out, a second call goes on where the first
    one was stopped.

    Rows: none random first last surprisal names bm25 mean4 mean8 start
    shuffled latents full, and latents@16, latents_i8, latents_hybrid,
    none_plain, full_tuned.

    Examples:

      latentwire eval reference --data dev.jsonl.gz --questions 300

      latentwire eval runs/a -d dev.jsonl --protocol one-shot -o quality.json
    """
    from ..core.console import configure, run_cli
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .report import Request, report
        request = Request(
            checkpoint,
            data,
            questions,
            tuple(llm or ()),
            max_new_tokens,
            precision,
            device,
            out,
            record,
            rows=_listed(rows),
            protocol=protocol,
            example=example,
            latents=_listed(latents),
            joint=joint,
            batch=batch,
            encoder=encoder,
        )
        report(request, as_json)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("diagnose")
def diagnose_command(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint or run folder, or `reference`.")],
    data: Annotated[list[Path], typer.Option("--data", "-d", help="Questions, JSONL or JSONL.gz; may be repeated.")],
    questions: Annotated[int, typer.Option("--questions", "-n", min=1, help="How many, in a seeded order.")] = 64,
    only: Annotated[str, typer.Option(help="Checks, with commas; default: all.")] = "",
    llm: Annotated[list[str] | None, typer.Option(help="Only these of the checkpoint's LLMs.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of overfitting and cramming, at most.")] = 300,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="fp32: as exported.")] = "fp32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the figures to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find out whether latents are read, what they hold, and whether the path can learn.

    Checks: answers (shuffle gap, gap closed), reconstruction (tokens read
    back, bits a latent), cloze, overfit (8 texts to the letter), cramming
    (free vectors instead of the encoder). The last two train for minutes;
    the checkpoint stays as it is. Exit status 5 where a gate is not passed.

    Examples:

      latentwire diagnose runs/a --data dev.jsonl.gz

      latentwire diagnose reference -d dev.jsonl.gz --only answers,cloze
    """
    from ..core.console import configure, run_cli
    from ..core.errors import EXIT_MISMATCH, EXIT_OK
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .diagnose import Request, diagnose
        asked = Request(checkpoint, data, questions, _listed(only), tuple(llm or ()), steps, precision, device, out)
        return EXIT_OK if diagnose(asked, as_json) else EXIT_MISMATCH

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)
