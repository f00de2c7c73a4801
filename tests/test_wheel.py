"""The wheel holds the package and nothing else: every tracked file of the listed folders, no test, no script."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

UNSHIPPED = {".ci", ".types", "docs", "examples", "scripts", "tests"}
ROOT_FILES = {"__init__.py", "cli.py", "py.typed"}


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """Files that git knows, as far as they exist in the working tree."""
    if not (root / ".git").exists():
        pytest.skip("no git checkout: nothing to compare the wheel with")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout.decode()
    return [name for name in listing.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(root: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build folder left in the checkout cannot leak into it."""
    return build_wheel(root, tracked, tmp_path_factory.mktemp("wheel"))


def build_wheel(root: Path, files: list[str], folder: Path) -> Path:
    source = folder / "source"
    for name in files:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def folders_of(project: dict[str, Any]) -> set[str]:
    """The listed packages as paths; ``.`` is the root."""
    names = project["tool"]["setuptools"]["packages"]
    return {name.removeprefix("latentwire").lstrip(".").replace(".", "/") or "." for name in names}


def test_every_code_folder_is_listed(project: dict[str, Any], tracked: list[str]) -> None:
    holding = {Path(name).parent.as_posix() for name in tracked if name.endswith(".py")}
    assert {f for f in holding if f.split("/")[0] not in UNSHIPPED} == folders_of(project)


def test_the_wheel_holds_exactly_the_tracked_files_of_the_packages(
    wheel: Path, project: dict[str, Any], tracked: list[str]
) -> None:
    folders = folders_of(project) - {"."}
    wanted = {f"latentwire/{name}" for name in tracked if Path(name).parent.as_posix() in folders}
    # Data beside a package's files: further encoders of the checkpoint.
    wanted |= {f"latentwire/{name}" for name in tracked if Path(name).parts[:1] == ("reference",)}
    wanted |= {f"latentwire/{name}" for name in ROOT_FILES}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    metadata = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    assert held - metadata == wanted
    assert {name.split("/", 1)[1] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "licenses/reference/LICENSE-gemma.txt",
        "top_level.txt",
    }


def test_plain_installation_brings_no_torch(wheel: Path, project: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
        lines = archive.read(name).decode().split("\n\n")[0].splitlines()
    always = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(always) == len(project["project"]["dependencies"])
    for word in ("torch", "transformers", "tensorrt", "ray", "onnx>"):
        assert not [line for line in always if f" {word}" in line]


def test_versions_agree(project: dict[str, Any]) -> None:
    import latentwire

    assert latentwire.__version__ == project["project"]["version"]
