"""A toy bundle for all benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire.engines.toy import write_toy_bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle."""
    return write_toy_bundle(tmp_path_factory.mktemp("bench") / "toy", max_tokens=256, latents=8).path
