"""What the documentation site holds beyond docs/: pages made from the code, and pages from other folders.

MkDocs calls ``on_files`` before it reads pages and ``on_page_markdown`` for each one; see ``hooks`` in mkdocs.yml.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from commands import command_reference
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmark-texts.md",
    "examples/README.md": "examples.md",
    "reference/README.md": "checkpoint.md",
    "runtime/demo_documents/README.md": "demo-documents.md",
}
"""File of the repository -> page of the site."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)]*)?\)")
MARK = re.compile(r"^<!-- (?:not run|run by)\b.*?-->\n", re.MULTILINE)
"""Says how the tests treat the block below it (tests/docs/blocks.py); readers need not see it."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not files of docs/."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "cli.md", content=command_reference()))
    reports = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    files.append(File.generated(config, "results.md", content=_results(reports)))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, picture.name, content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bend links between files of the repository into links between pages; what is no page stays as text."""
    here = {page_name: source for source, page_name in ELSEWHERE.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )

    def bent(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path in ELSEWHERE:
            return f"[{text}]({ELSEWHERE[path]}{anchor})"
        if path.startswith("docs/") or not (ROOT / path).exists():  # MkDocs itself refuses those that lead nowhere
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return text

    return MARK.sub("", LINK.sub(bent, markdown))


def _results(reports: list[Path]) -> str:
    """The newest committed report of ``./scripts/bench`` with its picture."""
    if not reports:
        return "# Results\n\nNo report of `./scripts/bench` is committed yet. See [how to make one](benchmarks.md).\n"
    newest = reports[-1]
    picture = newest.with_suffix(".png")
    shown = f"![Plots of the report]({picture.name})\n\n" if picture.exists() else ""
    return f"# Results\n\n`{newest.name}`, written by `./scripts/bench`.\n\n{shown}{newest.read_text(encoding='utf-8')}"
