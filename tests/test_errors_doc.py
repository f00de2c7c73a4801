"""docs/errors.md lists every code that the source raises, no other, and each code has a test that names it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

RANGES = {
    "FrameError": (1101, 1199),
    "RowError": (2001, 2099),
    "InputError": (2101, 2199),
    "LatentError": (3001, 3099),
    "ModelError": (3101, 3299),
    "BundleError": (4001, 4099),
    "EnvironmentFault": (5001, 5099),
}
FOLDERS = ("core", "models", "engines", "export", "training", "runtime", "benchmarks")

STOPPING = {2004, 2008}
"""Faults of rows that stop the whole job: every row without a text, ids that stand twice."""


def raised(root: Path) -> Iterator[tuple[int, str, str]]:
    """(code, class, file:line) of every error built in the source from a literal code."""
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).split(".")[-1]
                code = node.args[0]
                if isinstance(code, ast.Constant) and type(code.value) is int and name in RANGES:
                    yield code.value, name, f"{path.relative_to(root).as_posix()}:{node.lineno}"


def documented(root: Path) -> set[int]:
    """Codes in the first column of the tables of docs/errors.md."""
    text = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    return {int(code) for code in re.findall(r"^\| (\d{4}) \|", text, flags=re.MULTILINE)}


def test_codes_lie_in_the_range_of_their_class(root: Path) -> None:
    wrong = [f"{where}: {name}({code})" for code, name, where in raised(root) if not _fits(code, RANGES[name])]
    assert wrong == []


def _fits(code: int, limits: tuple[int, int]) -> bool:
    return limits[0] <= code <= limits[1] or (limits == RANGES["InputError"] and code in STOPPING)


def test_every_code_is_documented(root: Path) -> None:
    known = documented(root)
    assert sorted({f"{code} ({where})" for code, _, where in raised(root) if code not in known}) == []


def test_every_documented_code_stands_in_the_source(root: Path) -> None:
    source = "\n".join(p.read_text(encoding="utf-8") for folder in FOLDERS for p in (root / folder).rglob("*.py"))
    assert [code for code in sorted(documented(root)) if not re.search(rf"\b{code}\b", source)] == []


def test_every_documented_code_has_a_test(root: Path) -> None:
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (root / "tests").rglob("test_*.py"))
    assert [code for code in sorted(documented(root)) if not re.search(rf"\b{code}\b", tests)] == []
