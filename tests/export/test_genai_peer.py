"""An independent exporter, onnxruntime-genai's builder, reads the same weights and chooses the same tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from latentwire.engines.bundle import read_bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.drive import run
from latentwire.export.limits import LOGIT_TOLERANCE

NEW = 8
PROMPTS = 64
HERE = Path(__file__).parent


@pytest.fixture
def python() -> str:
    """One that has the package: this one, or ``LATENTWIRE_GENAI_PYTHON``."""
    given = os.environ.get("LATENTWIRE_GENAI_PYTHON")
    if not given and importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed; LATENTWIRE_GENAI_PYTHON may name a Python that has it")
    return given or sys.executable


@pytest.mark.slow
def test_equal_tokens(python: str, smollm2: Path, smollm2_bundle: Path, tmp_path: Path) -> None:
    """A row is compared up to its first other token, which only two nearly equal logits excuse."""
    lines = (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    prompts = [[1, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids] for line in lines]
    work = Path(os.environ.get("LATENTWIRE_GENAI_WORK", tmp_path))
    command = [python, str(HERE / "genai_peer.py"), str(smollm2), str(work), str(NEW)]
    peer = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=False)
    assert peer.returncode == 0, peer.stderr[-2000:]
    theirs = json.loads(peer.stdout)
    engine = OrtCpuEngine(read_bundle(smollm2_bundle, verify="size"))
    compared = undecided = 0
    for start in range(0, len(prompts), 16):
        ours = run(engine, prompts[start : start + 16], NEW)
        for b, said in enumerate(theirs[start : start + 16]):
            for step, token in enumerate(said):
                compared += 1
                mine = int(ours.tokens[b, step])
                if mine != token:
                    margin = float(ours.logits[step, b, mine] - ours.logits[step, b, token])
                    assert margin <= 2 * LOGIT_TOLERANCE, f"prompt {start + b}, step {step}: {mine} here, {token} there"
                    undecided += 1
                    break
    print(f"{len(prompts)} prompts, {compared} tokens compared, {undecided} undecided")
    assert len(prompts) >= 50
    assert compared >= np.ceil(0.9 * NEW * len(prompts))
