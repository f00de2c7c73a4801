"""The embedded model itself: 229 real sentences, greedy tokens equal to transformers in float32.

Sentences in prompts.jsonl: The World Factbook, 18F blog, digital.gov (US government, public domain or CC0) and
Python enhancement proposals in the public domain; the source of each stands beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from latentwire.engines.bundle import Bundle, read_bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.backends import backends
from latentwire.export.drive import greedy
from latentwire.export.gate_reference import BATCH
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend
from latentwire.models.folder import ModelFolder
from latentwire.models.store import resolve

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


def test_equals_transformers_on_200_prompts(
    bundle: Bundle, llm: ModelFolder, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    """Hidden states, logits, and every greedy token of every prompt.

    There: eager attention, batches of one length, no padding. Here: ragged, padded, cache in place.
    One test, so that transformers runs once however the tests are spread over processes.
    """
    from latentwire.export.reference import measure

    recorded = measure(llm.path, llm.fingerprint, prompts, new=NEW)
    (backend,), _ = backends(bundle, None, ["ort-cpu"])
    found = {f.gate: f for f in check_backend(backend, bundle, recorded)}
    print(*found.values(), sep="\n")
    assert all(f.verdict == "passed" for f in found.values())
    assert len(recorded.prompts) >= 200
    assert "0 undecided" in found["tokens"].detail, "a reference margin under 0.002; equal tokens were wanted for all"
    assert "in-place" not in capfd.readouterr().err


def test_batch_single_cached_uncached(bundle: Bundle, prompts: list[list[int]]) -> None:
    """A ragged batch, the same prompts alone, and alone without a cache: the same tokens."""
    engine = OrtCpuEngine(bundle)
    few = prompts[:BATCH:8]
    together = greedy(engine, few, 4)
    alone = np.concatenate([greedy(engine, [p], 4) for p in few])
    assert together.tolist() == alone.tolist()
    longer = [list(p) for p in few]
    for step in range(4):
        again = greedy(engine, longer, 1)[:, 0]
        assert again.tolist() == together[:, step].tolist()
        longer = [[*p, int(t)] for p, t in zip(longer, again, strict=True)]
    engine.close()
