"""Options that several commands share, and how a command's body is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .choices import BackendName

BundleOption = Annotated[
    Path, typer.Option("--bundle", "-b", envvar="LATENTWIRE_BUNDLE", help="Folder made by `latentwire export`.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Computing threads. Default: all.")]
Device = Annotated[str, typer.Option(help="cpu, cuda (the first GPU) or cuda:N; for jobs also several: cuda:0,cuda:1.")]
EngineOption = Annotated[
    BackendName,
    typer.Option(
        "--engine", help="auto: TensorRT if the bundle has a plan and the device is a GPU, else ONNX Runtime."
    ),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Texts or prompts that run together.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def run_body(body: Callable[[], int], quiet: bool, debug: bool) -> None:
    """Run what a command does; errors become one line and an exit status."""
    from ..core.console import configure, run_cli

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)
