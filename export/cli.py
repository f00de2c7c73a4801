"""``latentwire export`` and ``latentwire publish``: options and output only; ``export.export`` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Checkpoint to bundle.", no_args_is_help=True)

Yardstick = Literal["auto", "transformers", "recorded"]
TargetKind = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Form = Literal["fp32", "fp16", "bf16", "int8", "w8", "w4", "fp8"]
Attention = Literal["dual", "mask", "gqa"]
Verify = Literal["full", "weights", "none"]


@app.command("export")
def export_command(
    source: Annotated[
        str, typer.Argument(help="A checkpoint folder, `reference` (the one that ships), or a bundle to compile.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the bundle.")],
    llm: Annotated[str, typer.Option(help="A name from `models list`, a folder, or hf:org/name.")] = "smollm2-135m",
    encoder: Annotated[
        str, typer.Option(help="The checkpoint's second encoder of this kind: bytes.", show_default=False)
    ] = "",
    target: Annotated[TargetKind, typer.Option(help="tensorrt and tensorrt-rtx also compile the graphs.")] = "onnx",
    precision: Annotated[
        Form | None,
        typer.Option(help="Of the decoder; fp32 is exact. Default: int8; fp16 for TensorRT.", show_default=False),
    ] = None,
    flavour: Annotated[
        Attention | None, typer.Option(help="Attention node. Default: dual, for all engines.", show_default=False)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="For tensorrt-rtx: sm_89,sm_120 and so on.", show_default=False)
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="Cache slots a row, fixed. Default: any; TensorRT: 512.", show_default=False)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Plans: most rows. Default: 64.", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option(help="Plans: longest prompt. Default: the capacity.", show_default=False)
    ] = None,
    verify: Annotated[Verify, typer.Option(help="full: every gate. weights: values only. none: trust me.")] = "full",
    reference: Annotated[
        Yardstick,
        typer.Option(help="Check against transformers, or against a recorded run of it. auto: what is there."),
    ] = "auto",
    measure: Annotated[
        str | None,
        typer.Option(
            help="What a quantised precision costs: questions as JSONL(.gz), `demo`, or `none`. Default: demo.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Computing threads. Default: all.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Turn a trained checkpoint and a frozen LLM into a bundle that engines run.

    Writes graphs, weights, tokenizers and a manifest with the hash of
    every file, then compares the exported LLM with its original: weights,
    hidden states, logits, greedy tokens. A bundle that differs is not kept.
    For TensorRT the graphs are also compiled, after an audit of what its
    parser made of them; tensorrt-rtx needs no GPU for that.

    Examples:

      latentwire export reference -o bundle/

      latentwire export reference -o exact/ --precision fp32

      latentwire export reference -o rtx/ --target tensorrt-rtx --gpu sm_89,sm_120

      latentwire export bundle/ -o compiled/ --target tensorrt
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        require_onnx()
        from .export import Request, export_bundle
        from .recompile import Recompile, is_bundle, recompile
        from .show import show
        from .target import Wishes, choose

        gpus = tuple(name.strip() for name in (gpu or "").split(",") if name.strip())
        wishes = Wishes(target, precision, flavour, capacity, batch, length, gpus)
        if is_bundle(source):
            made = recompile(Recompile(Path(source), out, wishes, overwrite, reference, threads, verify))
        else:
            wanted = choose(wishes)
            made = export_bundle(
                Request(source, llm, out, overwrite, reference, threads, wanted, verify, measure or "demo", encoder)
            )
        show(made, as_json)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("publish")
def publish_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder of a training run, such as runs/a/best.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the published checkpoint.", show_default=False)
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(help="Instead: add the encoder to this published checkpoint.", show_default=False),
    ] = None,
    about: Annotated[Path | None, typer.Option(help="TOML for meta.json: licence, data, command.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT, but keep its card.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make a trained checkpoint small and free of torch.

    Rounds the weights to fp16, traces encoder and adapters to ONNX beside
    them, and compares graphs with modules. Whoever exports or runs the
    result needs no torch. Measure it afterwards: latentwire eval --record.

    Example:

      latentwire publish runs/a/best --out checkpoints/a --about about.toml

      latentwire publish runs/bytes/best --join checkpoints/a
    """
    from ..core.console import configure, run_cli
    from ..core.errors import InputError, ModelError
    from ..core.extras import needs

    def body() -> int:
        import tomllib

        if (out is None) == (join is None):
            raise InputError(2111, "publish where?", expected="expected either --out or --join")
        facts = {}
        if about:
            try:
                facts = tomllib.loads(about.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise ModelError(3210, "cannot read the facts", where=str(about), expected=str(e)) from e
        with needs("train"):
            from .join import join as join_to
            from .publish import publish
        if out is not None:
            publish(checkpoint, out, facts, overwrite)
        elif join is not None:
            join_to(checkpoint, join, facts, overwrite)
        return 0

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("parity", hidden=True)
def parity_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    llm: Annotated[str | None, typer.Option(help="The model it was made of, if it is not in the store.")] = None,
    reference: Annotated[Yardstick, typer.Option(help="As of `latentwire export`.")] = "auto",
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Computing threads. Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Run the parity gates on a bundle: what ``latentwire inspect BUNDLE --parity`` calls."""
    from ..core.console import configure, run_cli

    def body() -> int:
        require_onnx()
        from .recheck import Recheck, run

        return run(Recheck(bundle, llm, reference, tuple(backend) if backend else None, threads), as_json)

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


def require_onnx() -> None:
    """Raise EnvironmentFault 5011 where the packages of the extra ``export`` are missing."""
    from importlib.util import find_spec

    from ..core.errors import EnvironmentFault

    for package in ("onnx", "ml_dtypes"):
        if find_spec(package) is None:
            raise EnvironmentFault(
                5011, f"package {package} is not installed", where="export", fix="pip install 'latentwire[export]'"
            )
