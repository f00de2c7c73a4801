"""The README is true: its tree is the tree, its extras are the extras; links of all pages lead somewhere.

Its code blocks are run by tests/docs/test_blocks.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentwire.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "reference/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_folder(readme: str, root: Path) -> None:
    tree = next(body for body in re.findall(r"```text\n(.*?)```", readme, flags=re.DOTALL) if "cli.py" in body)
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
