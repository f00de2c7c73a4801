"""A bundle on disk: read its manifest, verify its files, list what belongs in one.

A bundle is a flat folder. It is trusted as far as its manifest goes: every file is there with the right
size and SHA-256, nothing in the folder is a link, and no graph points at a file the manifest does not list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..core.errors import BundleError
from .manifest import FORMAT, VERSION, AdapterInfo, EncoderInfo, FileEntry, LlmInfo, Manifest, PlanInfo, parse
from .onnx_paths import external_files

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "AdapterInfo",
    "Bundle",
    "EncoderInfo",
    "FileEntry",
    "LlmInfo",
    "Manifest",
    "PlanInfo",
    "describe",
    "describe_files",
    "read_bundle",
]

MANIFEST: Final = "manifest.json"
MAX_MANIFEST: Final = 4 << 20
"""Bytes; a longer manifest is refused before it is parsed."""

Verify = Literal["full", "size"]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder and what it says about itself."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a listed file.

        Raises:
            BundleError: 4008 the manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(
                4008,
                "bundle has no such file",
                where=str(self.path / name),
                expected=f"listed files: {', '.join(sorted(self.manifest.files))}",
            )
        return self.path / name


def read_bundle(path: str | Path, *, verify: Verify = "full") -> Bundle:
    """Open a bundle folder and check it.

    Args:
        path: the folder that ``latentwire export`` wrote.
        verify: ``full`` hashes every file (about a second a gigabyte); ``size`` compares sizes only.

    Raises:
        BundleError: 4001 not a bundle; 4002 links or external data outside; 4007 a file differs from the
            manifest; 4008 a file is missing; 4009 written by a later version.
    """
    folder = Path(path)
    manifest = parse(_read_manifest(folder), str(folder / MANIFEST))
    _refuse_links(folder)
    for name, entry in manifest.files.items():
        _verify_file(folder, name, entry, verify)
    for name in manifest.files:
        if name.endswith(".onnx"):
            _verify_external(folder, name, manifest.files)
    return Bundle(folder, manifest)


def describe(path: Path) -> FileEntry:
    """Size and SHA-256 of one file."""
    with path.open("rb") as f:
        return FileEntry(hashlib.file_digest(f, "sha256").hexdigest(), path.stat().st_size)


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Every file of a bundle under construction, except the manifest, by name."""
    return {p.name: describe(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        with path.open("rb") as f:
            data = f.read(MAX_MANIFEST + 1)
    except OSError as e:
        raise BundleError(
            4001,
            "not a bundle",
            where=str(folder),
            expected=f"expected a folder with {MANIFEST}, got {e.strerror}",
            fix="make one with latentwire export",
        ) from e
    if len(data) > MAX_MANIFEST:
        raise BundleError(
            4001, "manifest is too long", where=str(path), expected=f"expected at most {MAX_MANIFEST} bytes"
        )
    return data


def _refuse_links(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_symlink():
            raise BundleError(
                4002,
                "a bundle holds no links",
                where=str(entry),
                expected=f"expected a plain file, got a link to {entry.readlink()}",
                fix="copy the file itself into the bundle",
            )


def _verify_file(folder: Path, name: str, entry: FileEntry, verify: Verify) -> None:
    if name != Path(name).name or name in ("", ".", ".."):
        raise BundleError(4002, "the manifest names a file outside the bundle", where=f"{folder}: {name!r}")
    path = folder / name
    if not path.is_file():
        raise BundleError(
            4008, "a file of the bundle is missing", where=str(path), fix="export again or copy the bundle again"
        )
    got = FileEntry(entry.sha256, path.stat().st_size)
    if verify == "full" and got.bytes == entry.bytes:
        got = describe(path)
    if got != entry:
        raise BundleError(
            4007,
            "a file of the bundle was changed",
            where=str(path),
            expected=f"expected {entry.bytes} bytes with SHA-256 {entry.sha256}, "
            f"got {got.bytes} bytes{'' if got.sha256 == entry.sha256 else ' with ' + got.sha256}",
            fix="export again or copy the bundle again",
        )


def _verify_external(folder: Path, name: str, listed: Mapping[str, FileEntry]) -> None:
    path = folder / name
    try:
        locations = external_files(path.read_bytes())
    except ValueError as e:
        raise BundleError(4001, "graph is not an ONNX file", where=str(path), expected=str(e)) from e
    for location in sorted(locations - set(listed)):
        raise BundleError(
            4002,
            "a graph points at external data outside the bundle",
            where=str(path),
            expected=f"expected a file the manifest lists, got {location!r}, which is {(folder / location).resolve()}",
            fix="export again",
        )
