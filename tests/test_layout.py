"""The import rules, read from the source with ast: who may import whom, and which folder may touch which library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

FOLDERS: dict[str, set[str]] = {
    "core": set(),
    "models": {"core"},
    "engines": {"core"},
    "training": {"core", "models"},
    "runtime": {"core", "models", "engines"},
    "export": {"core", "models", "engines", "training"},
    "benchmarks": {"core", "models", "engines", "runtime"},
    "reference": set(),
}
"""Folder -> the folders of ours that it may import."""

LAZY_FOLDERS = {("export", "training")}
"""Allowed inside functions only: exporting a shipped checkpoint must not need torch."""

ANYWHERE = {"numpy", "rich"}
"""Libraries every code folder may import."""

FENCES: dict[str, list[str]] = {
    "accelerate": ["training/*"],
    "cuda": ["engines/trt_cuda.py"],
    "fastapi": ["runtime/server/app.py"],
    "gguf": ["models/*"],
    "google": ["export/*"],  # protobuf, which onnx brings
    "google_crc32c": ["runtime/*"],
    "httpx2": ["benchmarks/serving.py"],
    "huggingface_hub": ["models/*"],
    "matplotlib": ["training/*", "benchmarks/*", "runtime/kept_png.py"],
    "ml_dtypes": ["core/*", "models/*", "export/*", "engines/*"],
    "modelopt": ["export/fp8.py"],
    "onnx": ["export/*", "engines/torch_graph.py", "engines/torch_ref.py", "benchmarks/counts.py"],
    "onnx_ir": ["export/*"],
    "onnxruntime": ["engines/ort*", "export/quantize.py", "benchmarks/peers/optimum_peer.py"],
    "onnxruntime_genai": ["benchmarks/peers/genai_peer.py"],
    "onnxscript": ["export/*"],
    "optimum": ["training/llm.py", "benchmarks/peers/optimum_peer.py"],
    "packaging": ["runtime/installed.py"],
    "peft": ["training/*"],
    "platformdirs": ["models/*", "core/*"],
    "psutil": ["benchmarks/*", "training/*"],
    "fsspec": ["runtime/jobs/remote.py"],
    "prometheus_client": ["runtime/server/metrics.py"],
    "pyarrow": ["runtime/jobs/*", "training/data*"],
    "pydantic": ["runtime/server/schema.py"],
    "ray": ["runtime/jobs/ray_backend.py"],
    "safetensors": [
        "runtime/jobs/export_rows.py",
        "runtime/prompts/file.py",
        "models/*",
        "engines/*",
        "export/*",
        "training/*",
    ],
    "starlette": ["runtime/server/*"],
    "tensorboard": ["training/*"],
    "tensorrt": ["engines/trt*", "export/plan.py", "export/audit.py"],
    "tensorrt_rtx": ["engines/trt*", "export/plan.py", "export/audit.py"],
    "tokenizers": ["models/*", "runtime/tokenizer.py", "training/*", "export/*"],
    "torch": ["training/*", "export/*", "engines/torch_*.py", "engines/trt_torch.py", "benchmarks/peers/*"],
    "transformers": ["training/*", "export/*", "benchmarks/peers/*"],
    "typer": ["cli.py", "*/cli.py", "runtime/flags.py", "runtime/jobs/rows_cli.py"],
    "uvicorn": ["runtime/server/run.py", "runtime/server/protocol.py"],
    "xllamacpp": ["benchmarks/peers/llamacpp_peer.py"],
    "zstandard": ["runtime/*", "training/evaluation/sizes.py"],
}
"""Library -> the files that may import it. A library in neither table is a dependency nobody declared."""

LAZY_LIBRARIES = {
    ("torch", "export/*"),
    ("transformers", "export/*"),
    ("onnxscript", "export/*"),
    *((lib, "benchmarks/*") for lib in ("torch", "transformers", "onnx", "matplotlib", "httpx2")),
}
"""Allowed inside functions only."""


@dataclass(frozen=True)
class Import:
    """One imported module: ``names`` from the top, ``lazy`` inside a function or for type checkers only."""

    line: int
    level: int
    parts: tuple[str, ...]
    lazy: bool


def imports_of(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """All imports below ``tree``; ``from .. import a, b`` counts as ``..a`` and ``..b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, 0, tuple(alias.name.split(".")), lazy)
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield Import(node.lineno, node.level, (*base, alias.name), lazy)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from imports_of(ast.Module([child], []), True)
            for child in node.orelse:
                yield from imports_of(ast.Module([child], []), lazy)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_of(node, lazy or inside)


def violations(root: Path) -> list[str]:
    """Every broken rule of the tree at ``root``, as ``file:line: sentence``."""
    found: list[str] = []
    for path in sorted(
        [root / "__init__.py", root / "cli.py", *(p for f in FOLDERS for p in (root / f).rglob("*.py"))]
    ):
        if not path.exists():
            continue
        file = path.relative_to(root)
        for item in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            sentence = _judge(file, item)
            if sentence:
                found.append(f"{file.as_posix()}:{item.line}: {sentence}")
    return found


def _judge(file: Path, item: Import) -> str | None:
    package = file.parent.parts  # ("runtime", "jobs"); () in the root
    if item.level == 0:
        return _judge_absolute(file, package, item)
    if not package:
        return "the root has absolute imports only"
    if item.level - 1 > len(package):
        return f"{'.' * item.level}{'.'.join(item.parts)} climbs out of the package"
    target = (*package[: len(package) - (item.level - 1)], *item.parts)
    return _judge_folder(package[0], target[0], item)


def _judge_folder(own: str, other: str, item: Import) -> str | None:
    if other == own:
        return None
    if other not in FOLDERS:
        return f"..{other} is no folder of this project"
    if other not in FOLDERS[own]:
        return f"{own}/ must not import {other}/"
    if (own, other) in LAZY_FOLDERS and not item.lazy:
        return f"{own}/ imports {other}/ inside functions only"
    return None


def _judge_absolute(file: Path, package: tuple[str, ...], item: Import) -> str | None:
    top = item.parts[0]
    if top == "latentwire":
        if package:
            return f"inside a folder write ..{'.'.join(item.parts[1:])}, not {'.'.join(item.parts)}"
        shown = file.as_posix() == "__init__.py" and item.lazy  # public names, for type checkers
        allowed = {"core", "__version__", *(["runtime"] if shown else [])}
        return None if set(item.parts[1:2]) <= allowed else "the root imports latentwire.core only"
    if top in FOLDERS:
        return f"bare import of {top} would load a second copy of it"
    if top in sys.stdlib_module_names or top in ANYWHERE:
        return None
    if top not in FENCES:
        return f"{top} is in no table of this test: declare it in pyproject.toml, then say here who may use it"
    name = file.as_posix()
    if not any(fnmatch(name, pattern) for pattern in FENCES[top]):
        return f"{top} may be imported only in {', '.join(FENCES[top])}"
    if not item.lazy and any(top == lib and fnmatch(name, pattern) for lib, pattern in LAZY_LIBRARIES):
        return f"{top} is imported inside functions only"
    return None


def test_the_tree_keeps_the_rules(root: Path) -> None:
    assert violations(root) == []


def test_only_two_python_files_in_the_root(root: Path) -> None:
    assert {p.name for p in root.glob("*.py")} == {"__init__.py", "cli.py"}


PLANTED = [
    ("engines/base.py", "from ..runtime import pipeline", "engines/base.py:1: engines/ must not import runtime/"),
    ("engines/base.py", "from .. import runtime", "engines/base.py:1: engines/ must not import runtime/"),
    ("runtime/jobs/plan.py", "from ...training.data import x", "runtime/ must not import training/"),
    ("runtime/jobs/plan.py", "from ..codec import x", None),
    ("runtime/jobs/plan.py", "from ....core import x", "climbs out of the package"),
    ("core/files.py", "from ..models import store", "core/ must not import models/"),
    ("export/modules.py", "from ..training.encoder import x", "inside functions only"),
    ("export/modules.py", "def f():\n    from ..training.encoder import x", None),
    ("export/modules.py", "import torch", "torch is imported inside functions only"),
    ("export/modules.py", "def f():\n    import torch", None),
    ("runtime/encode.py", "def f():\n    import torch", "torch may be imported only in"),
    (
        "runtime/encode.py",
        "try:\n    import onnxruntime\nexcept ImportError:\n    pass",
        "encode.py:2: onnxruntime may be",
    ),
    ("engines/ort.py", "import onnxruntime as ort", None),
    ("runtime/encode.py", "import runtime.pipeline", "second copy"),
    ("runtime/encode.py", "from latentwire.core import errors", "write ..core.errors"),
    ("runtime/encode.py", "import pandas", "pandas is in no table"),
    ("runtime/encode.py", "import typer", "typer may be imported only in"),
    ("runtime/cli.py", "import typer", None),
    ("cli.py", "from latentwire.runtime import x", "the root imports latentwire.core only"),
    ("__init__.py", "from .core import x", "absolute imports only"),
    ("__init__.py", "from latentwire.runtime import x", "the root imports latentwire.core only"),
    ("__init__.py", "if TYPE_CHECKING:\n    from latentwire.runtime import x", None),
]


@pytest.mark.parametrize(("file", "source", "sentence"), PLANTED)
def test_planted_violations_are_found(tmp_path: Path, file: str, source: str, sentence: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")
    found = violations(tmp_path)
    if sentence is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert file in found[0]
        assert sentence in found[0]
