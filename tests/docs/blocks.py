"""The code blocks of the pages, and what the comment above a block says about running it.

<!-- slow: reason -->         runs in the slow tier
<!-- not run: reason -->      only read: commands and options exist, Python compiles, TOML and JSON parse
<!-- run by FILE -->          a test of its own runs it; that file names the page
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ABOVE = {
    ("README.md", "./scripts/demo "): ("not run", "minutes, and a language model from the network"),
    ("README.md", "./scripts/install "): ("not run", "an environment and a language model from the network"),
    ("README.md", "latentwire export reference -o bundle"): ("not run", "minutes each; tests/export exports them all"),
    ("README.md", 'pip install ".[serve]"'): ("not run", "it does not end; tests/runtime/server runs one"),
    ("README.md", "latentwire train "): ("not run", "hours; tests/training does it in small"),
    ("README.md", "./scripts/bench "): ("not run", "up to half an hour"),
    ("reference/README.md", "latentwire eval "): ("not run", "half an hour on held-out data"),
}
"""Marks of blocks on pages that are read as plain files: page, how the block begins -> mark, reason."""

PAGES = ("README.md", "CONTRIBUTING.md", "reference/README.md", "benchmarks/README.md", "examples/README.md")
"""Pages beside docs/*.md."""

FENCE = re.compile(
    r"(?:^<!-- (not run|run by)\b:? ?(.*?) ?-->\n)?^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its language, its lines, and how it is tested."""

    page: str
    line: int
    language: str
    body: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Lines of a shell block as words, comments removed, continued lines joined."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages(root: Path) -> list[str]:
    """Every page with blocks, relative to the root."""
    return [*PAGES, *sorted(f"docs/{p.name}" for p in (root / "docs").glob("*.md"))]


def blocks(root: Path, page: str) -> list[Block]:
    """The fenced blocks of one page, in order."""
    text = (root / page).read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), f"{page}: a fence without its partner"
    made = []
    for m in found:
        known = [mark for (where, begin), mark in ABOVE.items() if where == page and m[4].startswith(begin)]
        mark, reason = (m[1] or "", (m[2] or "").strip()) if m[1] or not known else known[0]
        line = text[: m.start(3)].count("\n") + 1
        made.append(Block(page, line, m[3], m[4], mark, reason))
    return made
