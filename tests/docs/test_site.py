"""The documentation site builds without a warning and holds every command, option, error code and drawing."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mkdocs.utils.yaml import yaml_load

from latentwire.cli import app

BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # with --quiet it would count no warnings


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    # The highlighter warns about nothing here; MkDocs' own warnings are errors by --strict.
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run([*BUILD, "-d", str(out)], cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    run = build(root, out)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def seen(site: Path, page: str) -> str:
    """Text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text(encoding="utf-8")))


def commands(command: Any, words: str = "latentwire") -> Iterator[tuple[str, Any]]:
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from commands(below, f"{words} {name}")
        elif not below.hidden:
            yield f"{words} {name}", below


def test_every_command_and_option_is_there(site: Path) -> None:
    text = seen(site, "cli")
    found = list(commands(typer.main.get_command(app)))
    assert len(found) > 20
    missing = [words for words, _ in found if f"\n{words}¶" not in text]
    missing += [f"{w} {o}" for w, c in found for p in c.params for o in p.opts if o not in text]
    assert missing == []


def test_every_page_is_in_the_navigation(root: Path, site: Path) -> None:
    names = {p.stem for p in (root / "docs").glob("*.md")} - {"index"}
    assert names <= {p.name for p in site.iterdir() if (p / "index.html").exists()}
    home = (site / "index.html").read_text(encoding="utf-8")
    assert {n for n in names if f'href="{n}/"' not in home} == set()


def test_public_names_are_documented(site: Path) -> None:
    import latentwire

    text = seen(site, "api")
    assert [name for name in latentwire.PUBLIC if name not in text] == []
    assert "5001 no such device" in text  # from a docstring


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', text) == [], page


def test_drawings_are_shown_and_have_a_label(root: Path, site: Path) -> None:
    pages = "".join(p.read_text(encoding="utf-8") for p in site.rglob("index.html"))
    for drawing in (root / "docs" / "assets").glob("*.svg"):
        assert f"assets/{drawing.name}" in pages
        assert 'aria-label="' in drawing.read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", ["[gone](nowhere.md)", "[gone](frame.md#no-such-heading)", "![gone](assets/no.svg)"])
@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(root: Path, tmp_path: Path, fault: str) -> None:
    for name in ("docs", "scripts", "benchmarks", "examples", "reference", "runtime"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / ".types").mkdir()
    (tmp_path / ".types" / "latentwire").symlink_to(root)
    with (tmp_path / "docs" / "limits.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{fault}\n")
    assert build(tmp_path, tmp_path / "site").returncode == 1


def test_nothing_in_the_configuration_hides_warnings(root: Path) -> None:
    text = (root / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml_load(text)
    assert config["strict"] is True
    assert {rule for group in config["validation"].values() for rule in group.values()} == {"warn"}
