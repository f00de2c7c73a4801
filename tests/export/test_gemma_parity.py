"""The second embedded model itself: Gemma 3 270M against transformers. Its terms must have been accepted before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from latentwire.core.errors import ModelError
from latentwire.engines.bundle import Bundle
from latentwire.export.backends import backends
from latentwire.export.gate_weights import check_weights
from latentwire.export.parity import check_backend
from latentwire.export.reference import measure, sentence_prompts
from latentwire.models.folder import ModelFolder
from latentwire.models.store import resolve


@pytest.fixture
def gemma() -> ModelFolder:
    try:
        return resolve("gemma-3-270m")
    except ModelError as e:
        pytest.skip(f"{e.what}: latentwire models add gemma-3-270m --accept-terms")


@pytest.mark.slow
def test_equals_transformers(gemma: ModelFolder, make_precise: Callable[..., Bundle], tmp_path: Path) -> None:
    """float32 on ONNX Runtime: weights, states, logits, tokens, and the bundle against itself."""
    bundle = make_precise(tmp_path / "gemma", gemma, "fp32")
    assert check_weights(bundle, gemma).verdict == "passed"
    prompts = sentence_prompts(gemma.tokenizer_path, bundle.manifest.llm.bos, 16)
    recorded = measure(gemma.path, gemma.fingerprint, prompts, new=8, probes=4)
    (backend,), _ = backends(bundle, None, ["ort-cpu"])
    for finding in check_backend(backend, bundle, recorded):
        print(finding)
        assert finding.verdict == "passed"
