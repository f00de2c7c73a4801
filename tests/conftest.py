"""Options and fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MODEL_FIXTURES = {"smollm2", "smollm2_bundle"}
"""Session fixtures that need the embedded language model on disk; ``--quick`` skips what uses them."""


RTX = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""Import names of the TensorRT that compiles without a GPU."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--quick", action="store_true", help="skip tests that need the embedded language model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if config.getoption("--quick") and MODEL_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="needs the language model; run without --quick"))
        if item.get_closest_marker("ray") and not _installed("ray"):
            item.add_marker(pytest.mark.skip(reason="ray is not installed"))
        if item.get_closest_marker("trt") and not any(_installed(name) for name in RTX):
            item.add_marker(pytest.mark.skip(reason="TensorRT-RTX is not installed"))
        if item.get_closest_marker("gpu") and not _gpu():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gpu() -> bool:
    return Path("/dev/nvidia0").exists()


@pytest.fixture(autouse=True)
def _talkative() -> None:
    """Commands run in this process set ``--quiet`` for all that follows; every test starts as a user would."""
    from latentwire.core.console import configure

    configure(quiet=False, debug=False, every_s=5.0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root, which is also the package."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded model in the user's own store; fetched and converted if it is not there yet."""
    from latentwire.models.store import add

    return add("smollm2-135m").path


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint exported for the embedded model; made once, whichever worker asks first."""
    from latentwire.core.locks import exclusive
    from latentwire.export.export import Request, export_bundle

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    out = shared / "smollm2-bundle"
    with exclusive(shared / "smollm2-bundle.lock"):
        if not out.is_dir():
            export_bundle(Request("reference", smollm2.name, out, reference="recorded"))
    return out
