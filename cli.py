"""The ``latentwire`` command: a table of commands, each imported when it is called.

Knows where a command lives and nothing about what it does. ``latentwire --help`` imports every module named
here, so those import only Typer and option types at the top.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latentwire import __version__
from latentwire.core.console import configure, run_cli

COMMANDS: dict[str, str] = {
    "demo": "latentwire.runtime.cli",
    "models": "latentwire.models.cli",
    "compress": "latentwire.runtime.cli",
    "jobs": "latentwire.runtime.jobs.cli",
    "generate": "latentwire.runtime.cli",
    "serve": "latentwire.runtime.server.cli",
    "inspect": "latentwire.runtime.cli",
    "engines": "latentwire.runtime.cli",
    "doctor": "latentwire.runtime.cli",
    "export": "latentwire.export.cli",
    "publish": "latentwire.export.cli",
    "parity": "latentwire.export.cli",
    "train": "latentwire.training.cli",
    "adapt": "latentwire.training.cli",
    "eval": "latentwire.training.cli",
    "diagnose": "latentwire.training.cli",
    "bench": "latentwire.benchmarks.cli",
}
"""Command -> the module whose ``app`` holds it: as a command of that name, or (``models``) as a whole."""


class _Commands(MutableMapping[str, Any]):
    """The table as Typer wants it: looking a command up imports its module."""

    def __getitem__(self, name: str) -> Any:
        command = typer.main.get_command(import_module(COMMANDS[name]).app)
        found = getattr(command, "commands", {}).get(name, command)
        found.name = name
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("commands are added in COMMANDS")

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands are removed in COMMANDS")


class _LazyGroup(TyperGroup):
    """A group whose commands are read from ``COMMANDS``."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in table order, without importing anything."""
        return list(COMMANDS)


app = typer.Typer(
    cls=_LazyGroup,
    name="latentwire",
    help="Compress texts into latents, send them as frames, and let a frozen language model answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latentwire {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Compress texts into latents, send them as frames, and let a frozen language model answer."""
    configure(debug=debug or None)


def main() -> None:
    """Entry point of the console script: runs the app and turns our errors into one line and an exit code."""
    run_cli(app)


if __name__ == "__main__":
    main()
