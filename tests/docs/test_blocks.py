"""Every code block of the README and of docs/ runs as it stands there, or says why it does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentwire.cli import app

from .blocks import ABOVE, Block, blocks, pages
from .place import furnish, read, run

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in pages(ROOT) if blocks(ROOT, page)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(page: str, place: Path) -> None:
    found = blocks(ROOT, page)
    for block in found:  # files that the commands of the page read
        if block.language == "toml":
            run(block)
    if page == "docs/jobs.md":
        two_jobs()
    for block in found:
        read(block) if block.mark else run(block)


def two_jobs() -> None:
    """What `jobs merge` of the page puts together: jobs without bad rows and without common ids."""
    for name in ("january", "february"):
        Path(f"{name}.jsonl").write_text(f'{{"custom_id": "{name}", "text": "Snow."}}\n', encoding="utf-8")
        words = ["compress", f"{name}.jsonl", "-o", name, "--bundle", "bundle", "-q"]
        assert CliRunner().invoke(app, words).exit_code == 0


def test_the_pages_print_what_they_promise(place: Path) -> None:
    (five,) = [b for b in blocks(ROOT, "docs/index.md") if b.language == "python"]
    assert run(five).strip()
    said = "".join(run(b) for b in blocks(ROOT, "docs/api.md") if b.language == "python")
    assert "4001 LW-4001" in said


@pytest.mark.parametrize("page", PAGES)
def test_marks_give_a_reason(page: str) -> None:
    for block in blocks(ROOT, page):
        if block.mark == "run by":
            source = (ROOT / block.reason).read_text(encoding="utf-8")
            last = block.body.strip().splitlines()[-1]
            assert page in source or page.removeprefix("docs/") in source or last in source, str(block)
        elif block.mark:
            assert len(block.reason.split()) >= 3, f"{block}: say why"


def test_no_mark_is_left_over() -> None:
    for page, begin in ABOVE:
        assert [b for b in blocks(ROOT, page) if b.body.startswith(begin)], (page, begin)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        used = sum(1 for b in blocks(ROOT, page) if b.mark)
        written = len(re.findall(r"^<!-- (?:not run|run by)\b", text, flags=re.MULTILINE))
        above = sum(1 for where, _ in ABOVE if where == page)
        assert used == written + above, f"{page}: a mark stands alone"


def planted(language: str, body: str, mark: str = "") -> Block:
    return Block("docs/none.md", 1, language, body, mark, "a reason of three words")


@pytest.mark.parametrize(
    ("language", "body"),
    [
        ("bash", "latentwire comress docs.jsonl\n"),
        ("bash", "latentwire inspect nothing-here\n"),
        ("bash", "latentwire compress docs.jsonl -o out --bundle bundle --codecs i8\n"),
        ("bash", "rm -r bundle\n"),
        ("python", "import latentwire\nlatentwire.Pipelines\n"),
        ("toml", "stepz = 3\n"),
        ("toml", "steps =\n"),
        ("json", "{1}\n"),
        ("rust", "fn main() {}\n"),
    ],
)
def test_a_wrong_block_is_found(place: Path, language: str, body: str) -> None:
    with pytest.raises(Exception):  # noqa: B017  each language has its own
        run(planted(language, body))


@pytest.mark.parametrize("body", ["latentwire bench speed\n", "latentwire train --confg x\n", "./scripts/none\n"])
def test_a_wrong_command_is_found_without_running_it(body: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        read(planted("bash", body, "not run"))
