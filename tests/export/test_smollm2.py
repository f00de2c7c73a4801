"""The embedded model itself: 229 real sentences, greedy tokens equal to transformers in float32.

Sentences in prompts.jsonl: The World Factbook, 18F blog, digital.gov (US government, public domain or CC0) and
Python enhancement proposals in the public domain; the source of each stands beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from latentwire.core.locks import exclusive
from latentwire.engines.bundle import Bundle, read_bundle
from latentwire.export import reference
from latentwire.export.backends import backends
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend
from latentwire.export.recorded import Recorded
from latentwire.models.folder import ModelFolder
from latentwire.models.store import home, resolve

NEW = 8


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> ModelFolder:
    return resolve("smollm2-135m")


@pytest.fixture(scope="module")
def bundle(smollm2_bundle: Path) -> Bundle:
    return read_bundle(smollm2_bundle)


@pytest.fixture(scope="module")
def prompts(llm: ModelFolder) -> list[list[int]]:
    """One prompt a sentence, BOS first."""
    lines = (Path(__file__).parent / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer.from_file(str(llm.tokenizer_path))
    return [[1, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids] for line in lines]


def test_weights_by_value(bundle: Bundle, llm: ModelFolder) -> None:
    check_weights(bundle, llm)


@pytest.fixture(scope="module")
def recorded(llm: ModelFolder, prompts: list[list[int]]) -> Recorded:
    """Transformers on every prompt, once for each version of it, of torch, of the model and of our driver of it.

    What it answered is kept with the other files of these tests.
    """
    import torch
    import transformers

    versions = [transformers.__version__, torch.__version__, llm.fingerprint, json.dumps(prompts), str(NEW)]
    driver = Path(reference.__file__).read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join([*versions, driver]).encode()).hexdigest()[:16]
    path = home() / "tests" / f"transformers-{llm.name}-{key}.npz"
    with exclusive(path.with_suffix(".lock")):
        if not path.is_file():
            full = reference.measure(llm.path, llm.fingerprint, prompts, new=NEW)
            for old in path.parent.glob(f"transformers-{llm.name}-*.npz"):
                old.unlink()
            words = json.dumps({"source": full.source, "prompts": full.prompts})
            arrays: dict[str, Any] = {n: v for n, v in vars(full).items() if isinstance(v, np.ndarray)}
            scratch = path.with_suffix(".tmp.npz")
            np.savez(scratch, words=np.array(words), **arrays)
            scratch.replace(path)
    with np.load(path) as kept:
        words = json.loads(str(kept["words"]))
        arrays = {name: kept[name] for name in kept.files if name != "words"}
    return Recorded(words["source"], llm.fingerprint, words["prompts"], **arrays)


def test_equals_transformers_on_200_prompts(
    bundle: Bundle, recorded: Recorded, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hidden states, logits, and every greedy token of every prompt; then the bundle against itself.

    There: eager attention, batches of one length, no padding. Here: ragged, padded, cache in place; batch against
    single, cached against uncached, memory used again, rows refilled.
    """
    (backend,), _ = backends(bundle, None, ["ort-cpu"])
    found = {f.gate: f for f in check_backend(backend, bundle, recorded)}
    print(*found.values(), sep="\n")
    assert all(f.verdict == "passed" for f in found.values())
    assert len(recorded.prompts) >= 200
    assert "0 undecided" in found["tokens"].detail, "a reference margin under 0.002; equal tokens were wanted for all"
    assert "in-place" not in capfd.readouterr().err
