"""A toy bundle for every test of the runtime: real shapes and rules, no download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime.pipeline import Pipeline

# A busy machine is no fault of the code: examples have no time limit.
settings.register_profile("latentwire", deadline=None)
settings.load_profile("latentwire")

TEXTS = [
    "The bridge was opened in 1932 and carries eight lanes of traffic.",
    "Water boils at 100 degrees Celsius at sea level.",
    "Short.",
    "Grüße aus Köln: die Brücke über den Rhein — 日本語もある。",
]


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Window 64 bytes, 8 latents of 8 dimensions, 2 task rows; one token a byte."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy")).path


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another encoder."""
    return write_toy_bundle(tmp_path_factory.mktemp("other"), seed=1).path


@pytest.fixture
def pipe(toy_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(toy_bundle) as opened:
        yield opened
