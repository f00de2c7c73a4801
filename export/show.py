"""What ``latentwire export`` prints: the files of a bundle and what parity measured."""

from __future__ import annotations

from ..core.console import print_json, print_table
from ..core.files import human_bytes
from ..engines.bundle import Bundle


def show(bundle: Bundle, as_json: bool) -> None:
    """Print a bundle that was just written."""
    m = bundle.manifest
    if as_json:
        print_json({"bundle": str(bundle.path), **m.to_json()})
        return
    rows = [(name, human_bytes(entry.bytes), entry.sha256[:12]) for name, entry in sorted(m.files.items())]
    print_table(["file", "size", "sha256"], rows, f"{bundle.path}: {m.llm.name}, {m.precision}")
    parity = m.quality.get("parity", {})
    print_table(["parity", "measured"], [(k, _short(v)) for k, v in parity.items()])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
