"""Running bundles needs no torch: with torch not installed everything outside training/ imports, and answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ABSENT = [
    "accelerate",
    "onnxscript",
    "optimum",
    "peft",
    "ray",
    "sentencepiece",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "transformers",
]

HIDE = f"""
import importlib.machinery
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {ABSENT!r} else real(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec  # as if these had never been installed
"""

WITH_TORCH = {"engines/torch_graph.py", "engines/torch_ops.py"}
"""The files outside training/ that are torch through and through."""


def without_torch(code: str, *args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that finds none of ``ABSENT``."""
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_blocker_hides_torch() -> None:
    run = without_torch("import importlib.util\nprint(importlib.util.find_spec('torch'))\nimport torch")
    assert run.stdout == "None\n"
    assert "ModuleNotFoundError: No module named 'torch'" in run.stderr


def test_everything_outside_training_imports(root: Path) -> None:
    files = [
        p.relative_to(root)
        for f in ("core", "models", "engines", "runtime", "export")
        for p in (root / f).rglob("*.py")
    ]
    names = [".".join(["latentwire", *p.with_suffix("").parts]) for p in files if p.as_posix() not in WITH_TORCH]
    names = sorted(name.removesuffix(".__init__") for name in names)
    run = without_torch("import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)
    assert run.returncode == 0, run.stderr


ANSWER = """
import sys
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime.pipeline import Pipeline
write_toy_bundle(sys.argv[1])
with Pipeline.open(sys.argv[1]) as pipe:
    frames = pipe.compress(["The bridge was opened in 1932.", "Nobody crossed it."])
    print(len(frames), len(pipe.generate(frames, ["When?", "Who?"])))
print(sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "transformers", "onnxruntime")))
"""


def test_the_pipeline_answers(tmp_path: Path) -> None:
    run = without_torch(ANSWER, str(tmp_path / "bundle"))
    assert run.returncode == 0, run.stderr
    assert run.stdout == "2 2\n[]\n"  # the toy engine needs no onnxruntime either
