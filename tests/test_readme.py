"""The README is true: its commands parse and run, its Python runs, its tree is the tree, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.engines.toy import write_toy_bundle

DOCS = tuple(
    f"docs/{name}.md"
    for name in ("benchmarks", "bundle", "errors", "evaluation", "frame", "jobs", "parity", "tensorrt", "training")
)
PAGES = ("README.md", "CONTRIBUTING.md", "reference/README.md", *DOCS)

Block = tuple[str, str]


def blocks(text: str) -> list[Block]:
    """(language, body) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(body: str) -> list[list[str]]:
    """Lines of a shell block as words, comments removed, continued lines joined."""
    lines = body.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sandbox(readme: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: a bundle (the toy engine) and the README's own docs.jsonl."""
    folder = tmp_path_factory.mktemp("readme")
    write_toy_bundle(folder / "bundle", max_tokens=4096)
    rows = [body for language, body in blocks(readme) if language == "json"]
    (folder / "docs.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def test_blocks_name_their_language(readme: str) -> None:
    assert {language for language, _ in blocks(readme)} == {"bash", "json", "python", "text"}
    assert readme.count("```") == 2 * len(blocks(readme))


def test_shell_lines_are_commands_that_exist(readme: str, root: Path) -> None:
    for language, body in blocks(readme):
        for words in commands(body) if language == "bash" else []:
            if words[0] == "latentwire":
                check_options(words[1:])
            elif words[0].startswith("./scripts/"):
                assert (root / words[0]).stat().st_mode & 0o100, words
            else:
                assert words[:2] in (["pip", "install"], [".", ".venv/bin/activate"]), words


def check_options(words: list[str]) -> None:
    """Every command and every option of a command line exists."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not hasattr(command, "commands"), f"not a command: {words}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_use_section_runs_as_written(readme: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    use = readme.split("## Use")[1].split("\n## ")[0]
    (body,) = [body for language, body in blocks(use) if language == "bash"]
    for words in commands(body):
        run = subprocess.run(
            [sys.executable, "-m", "latentwire.cli", *words[1:]], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{shlex.join(words)}\n{run.stderr}"
        assert run.stdout, words


def test_python_blocks_run(readme: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    sources = [body for language, body in blocks(readme) if language == "python"]
    assert sources
    for source in sources:
        exec(compile(source, "README.md", "exec"), {})  # noqa: S102  our own words


def test_json_blocks_are_json(readme: str) -> None:
    for language, body in blocks(readme):
        for line in body.splitlines() if language == "json" else []:
            assert isinstance(json.loads(line), dict)


def test_the_tree_names_every_folder(readme: str, root: Path) -> None:
    tree = next(body for language, body in blocks(readme) if language == "text" and "cli.py" in body)
    told = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    listing = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("no git checkout")
    names = {name.split("/")[0] for name in listing.stdout.splitlines() if "/" in name}
    assert told == names | {"__init__.py", "cli.py"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str, root: Path) -> None:
    text = (root / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((root / page).parent / target).exists(), f"{page}: {target}"


def test_extras_are_those_of_the_project(readme: str, root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"`(\w+)`", readme.split("the extras are")[1].split("\n\n")[0]))
    assert named == set(project["optional-dependencies"])


def test_help_is_offered_for_an_empty_command_line() -> None:
    assert "Usage:" in CliRunner().invoke(app, []).output
