"""Nothing that is read may run code: no file of the wheel unpickles, or calls a library so that it does."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Importing one of them is enough."""
CALLS = {
    "torch.load": "unpickles, with weights_only too",
    "torch.jit.load": "runs what the file says",
    "torch.save": "pickles",
    "yaml.load": "makes objects of any class",
    "numpy.savez": "pickles arrays of objects",
    "multiprocessing.Queue": "pickles what passes through it",
    "multiprocessing.Pipe": "pickles what passes through it",
    "multiprocessing.Pool": "pickles what passes through it",
    "multiprocessing.Manager": "pickles what passes through it",
    "concurrent.futures.ProcessPoolExecutor": "pickles what passes through it",
}
BUILTINS = {"eval", "exec"}
ALLOWED: set[tuple[str, str]] = set()
"""(file, what): used all the same; each with a reason."""


def names_of(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted name it was imported as."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``torch.load`` for ``t.load`` after ``import torch as t``."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return "?"


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that could run code out of data."""
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from ((node.lineno, m) for m in modules if m.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name in CALLS or name in BUILTINS:
            yield node.lineno, name
        for word in node.keywords:
            off = isinstance(word.value, ast.Constant) and word.value.value is False
            if word.arg in ("allow_pickle", "trust_remote_code") and not off:
                yield node.lineno, f"{name}({word.arg}=...)"


def test_no_file_of_the_wheel_unpickles(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    folders = [root.joinpath(*name.split(".")[1:]) for name in packages]
    files = sorted({path for folder in folders for path in folder.glob("*.py")})
    assert len(files) > 100
    found = [
        f"{path.relative_to(root).as_posix()}:{line}: {what}"
        for path in files
        for line, what in unsafe(path.read_text(encoding="utf-8"))
        if (path.relative_to(root).as_posix(), what) not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("import torch as t\nt.load('x', weights_only=True)", "torch.load"),
        ("def f():\n    from torch import load\n    load('x')", "torch.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "numpy.load(allow_pickle=...)"),
        ("import numpy as np\nnp.load('x', allow_pickle=flag)", "numpy.load(allow_pickle=...)"),
        ("import multiprocessing\nmultiprocessing.Queue()", "multiprocessing.Queue"),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", "AutoModel.from_pretrained(trust_remote_code=...)"),
        ("eval('1')", "eval"),
    ],
)
def test_the_search_sees(source: str, what: str) -> None:
    assert [w for _, w in unsafe(source)] == [what]


def test_the_search_lets_safe_uses_pass() -> None:
    assert not list(
        unsafe("import numpy as np\nnp.load('x', allow_pickle=False)\nmodel.eval()\nimport json\njson.load(f)")
    )
