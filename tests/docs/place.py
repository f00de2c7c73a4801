"""Where blocks run: a folder with the files that the pages speak of, on the toy bundle."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import typer
import zstandard
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.engines.toy import write_toy_bundle

from .blocks import Block

ROWS_FAILED = 3
"""Exit status of a command that did all it could; the pages show what becomes of a bad row."""

ROWS = [
    {"custom_id": "a7", "text": "The bridge was opened in 1932 and carries eight lanes of traffic.", "title": "Bridge"},
    {"custom_id": "b1", "text": "Water boils at 100 degrees.", "url": "https://example.org/b1"},
    {"custom_id": "long", "text": "One two three four five. " * 40},
]


def furnish(folder: Path) -> None:
    """Put everything into ``folder`` that a block may name."""
    write_toy_bundle(folder / "bundle", max_tokens=512, quantiser=True)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    (folder / "docs" / "deep").mkdir(parents=True)
    (folder / "docs" / "deep" / "a.jsonl.zst").write_bytes(zstandard.compress(lines.replace('": "', '": "x').encode()))
    (folder / "notes").mkdir()
    for number in range(300):  # so that one bad row stays below the pages' 1 %
        (folder / "notes" / f"{number}.txt").write_text("A short note about the harbour.", encoding="utf-8")


def run(block: Block) -> str:
    """Run one block in the current folder; what it printed."""
    if block.language in ("bash", "sh"):
        return "".join(shell(words, block) for words in block.commands())
    if block.language == "python":
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.body, str(block), "exec"), {"__name__": "page"})  # noqa: S102  our own words
        return said.getvalue()
    read(block)
    if block.language == "toml" and "inputs" in block.body:
        Path("job.toml").write_text(block.body, encoding="utf-8")
    return ""


def shell(words: list[str], block: Block) -> str:
    """One line of a shell block, in this process."""
    assert words[0] == "latentwire", f"{block}: {words[0]} needs a mark"
    result = CliRunner().invoke(app, words[1:], catch_exceptions=True)
    assert result.exit_code in (0, ROWS_FAILED), f"{block}: {' '.join(words)}\n{result.output}\n{result.exception!r}"
    return result.output


def read(block: Block) -> None:
    """A block that is not run: is it at least what it claims to be?"""
    import tomllib

    if block.language in ("bash", "sh"):
        for words in block.commands():
            check_options(words[1:], block) if words[0] == "latentwire" else known_program(words, block)
    elif block.language == "python":
        compile(block.body, str(block), "exec")
    elif block.language == "json":
        assert all(isinstance(json.loads(line), dict) for line in block.body.splitlines())
    elif block.language == "toml":
        values = tomllib.loads(block.body)
        if "inputs" not in values:  # not a job: a training configuration
            from latentwire.training.config import from_mapping

            from_mapping({"llms": ["smollm2-135m"], **values}, str(block))
    else:
        assert block.language == "text", f"{block}: unknown language {block.language!r}"


def check_options(words: list[str], block: Block) -> None:
    """Every command and every option of a command line exists."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), f"{block}: not a command: {words}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known, f"{block}: {words}"


def known_program(words: list[str], block: Block) -> None:
    """Scripts and examples exist; the rest are programs that the pages may name."""
    root = Path(__file__).resolve().parents[2]
    if words[0].startswith("./scripts/"):
        assert (root / words[0]).stat().st_mode & 0o100, f"{block}: {words}"
    elif words[0] == "python" and words[1] != "-m":
        assert (root / words[1]).is_file(), f"{block}: {words}"
    else:
        programs = (["pip", "install"], [".", ".venv/bin/activate"], ["python", "-m"], ["pytest-benchmark", "compare"])
        assert words[:2] in programs, f"{block}: {words}"
