"""The command reference, from the Typer app itself: every command, argument and option with its help."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import typer

from latentwire.cli import app

START = """# Commands

Made from the program. `latentwire COMMAND --help` shows the same in a terminal; options of all commands:
`--help`, and before the command `--version` and `--debug`. `latentwire --install-completion` sets up your shell.
"""


def command_reference() -> str:
    """Markdown of all commands that are not hidden."""
    return START + "".join(_section(words, command) for words, command in walk(typer.main.get_command(app)))


def walk(command: Any, words: tuple[str, ...] = ("latentwire",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be run, with the words that name it."""
    for name, below in getattr(command, "commands", {}).items():
        if below.hidden:
            continue
        if hasattr(below, "commands"):
            yield from walk(below, (*words, name))
        else:
            yield (*words, name), below


def _section(words: tuple[str, ...], command: Any) -> str:
    context = command.make_context(" ".join(words), ["--help"], resilient_parsing=True)
    rows = [record for p in command.params if p.name != "help" and (record := p.get_help_record(context))]
    usage = command.get_usage(context).removeprefix("Usage: ")
    table = "".join(f"| <code>{_cell(name)}</code> | {_cell(told)} |\n" for name, told in rows)
    return "\n".join(
        [
            "",
            f"## {' '.join(words)}",
            "",
            f"```text\n{' '.join(usage.split())}\n```",
            "",
            _help(command.help or ""),
            "",
            f"| option | meaning |\n|---|---|\n{table}",
        ]
    )


def _help(text: str) -> str:
    """The docstring; its examples, which are indented, as a block."""
    prose, _, examples = text.replace("\b", "").partition("Examples:\n")
    if not examples:
        return prose.strip()
    lines = [line for line in textwrap.dedent(examples).splitlines() if line.strip()]
    return f"{prose.strip()}\n\n```bash\n" + "\n".join(lines) + "\n```"


def _cell(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").replace("|", "&#124;").split())
