"""``latentwire train`` and ``latentwire eval``: options and output only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Train and measure checkpoints.", no_args_is_help=True)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file with training options.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder. If it holds a run, that run goes on.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Overrides one option: key=value.")] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step; the run can go on later.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an encoder and its adapters through frozen LLMs.

    The same command again resumes where the last checkpoint was written,
    with the same losses. OUT holds log.jsonl, last/ (to resume), best/
    (lowest held-out NLL from latents) and curves.png.

    Examples:

      latentwire train --config run.toml --out runs/a

      latentwire train -c run.toml -o runs/b --set steps=2000 --set seed=1
    """
    from ..core.console import configure, run_cli
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .config import load
            from .curves import draw
            from .train import Trainer
        Trainer(load(config, settings or ()), out).train(until)
        draw(out)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("eval")
def eval_command(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or `reference`: the one that ships.")],
    data: Annotated[list[Path], typer.Option("--data", "-d", help="Questions, JSONL or JSONL.gz; may be repeated.")],
    questions: Annotated[int, typer.Option("--questions", "-n", min=1, help="How many, in a seeded order.")] = 300,
    llm: Annotated[list[str] | None, typer.Option(help="Only these of the checkpoint's LLMs.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Greedy tokens an answer; 0: no F1 and EM.")] = 16,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="fp32: as exported.")] = "fp32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the figures to this JSON file.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Also store the figures in meta.json.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare latents with no context, first tokens, another text's latents and full text.

    All rows use the same questions, prompt and learned task tokens.
    Each question is a JSON object with context, question and answers.

    Example:

      latentwire eval reference --data dev.jsonl.gz --questions 300
    """
    from ..core.console import configure, run_cli
    from ..core.extras import needs

    def body() -> int:
        with needs("train"):
            from .report import Request, report
        request = Request(checkpoint, data, questions, tuple(llm or ()), max_new_tokens, precision, device, out, record)
        report(request, as_json)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)
