"""The programs of examples/README.md, as it calls them: on the toy bundle, and in the slow tier on the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.engines.toy import write_toy_bundle

PROGRAMS = {
    "two_processes.py": ["sender: Darshana, 676 bytes of text", "reader: From which language"],
    "many_questions.py": ["LW-2005", "neptune: ", "expected 'Sanskrit'"],
    "codecs.py": ["     f16 ", "     fsq ", "  hybrid ", "no frame "],
}
"""Program -> what it must print."""


def said(root: Path, program: str, bundle: Path) -> str:
    command = [sys.executable, str(root / "examples" / program), str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout


def test_every_program_is_here(root: Path) -> None:
    assert {p.name for p in (root / "examples").glob("*.py")} == set(PROGRAMS)
    page = (root / "examples" / "README.md").read_text(encoding="utf-8")
    assert [name for name in PROGRAMS if f"python examples/{name} bundle" not in page] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_runs_on_the_toy_bundle(root: Path, program: str, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", max_tokens=4096, quantiser=True)
    output = said(root, program, tmp_path / "bundle")
    assert [words for words in PROGRAMS[program] if words not in output] == []


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_runs_on_the_real_bundle(root: Path, program: str, smollm2_bundle: Path) -> None:
    output = said(root, program, smollm2_bundle)
    assert [words for words in PROGRAMS[program] if words not in output] == []
    if program == "two_processes.py":
        assert "152 bytes of frame" in output
