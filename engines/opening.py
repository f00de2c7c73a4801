"""``open_engine``: the only place that chooses an engine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..core.errors import EnvironmentFault
from .base import PARTS, Engine
from .bundle import Verify, read_bundle


def open_engine(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    parts: Collection[str] = PARTS,
    verify: Verify = "full",
) -> Engine:
    """Open a bundle and make an engine that runs it.

    Args:
        path: bundle folder.
        device: ``cpu``.
        threads: computing threads; None: all that this process may use.
        parts: graphs the caller will use; each is loaded when first called, others are refused.
        verify: see ``read_bundle``.

    Raises:
        BundleError: as ``read_bundle``.
        EnvironmentFault: 5001 unknown or missing device.
        ValueError: a part that no bundle has; our own mistake, not the user's.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}")
    if device != "cpu":
        raise EnvironmentFault(
            5001, "no such device", where=f"--device {device}", expected="expected cpu", fix="pass --device cpu"
        )
    bundle = read_bundle(path, verify=verify)
    if bundle.manifest.llm.family == "toy":
        from .toy import ToyEngine

        return ToyEngine(bundle)
    from .ort import OrtCpuEngine

    return OrtCpuEngine(bundle, threads=threads, parts=parts)
