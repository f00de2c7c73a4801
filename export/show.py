"""What ``latentwire export`` and ``latentwire inspect --parity`` print: a bundle's files, gates, measurements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
    show_parity(m.quality.get("parity", {}))


def show_parity(parity: dict[str, Any]) -> None:
    """Print what a report's ``to_json`` holds."""
    if not parity.get("gates"):
        print_table(["parity"], [("not verified: export ran with --verify none",)])
        return
    print_table(["gate", "backend", "measured", "limit", "verdict", "detail"], list(_rows(parity["gates"])))


def _rows(gates: Iterable[dict[str, Any]]) -> Iterable[tuple[str, ...]]:
    for gate in gates:
        measured = f"{_short(gate['measured'])} {gate.get('unit', '')}".rstrip() if "measured" in gate else "-"
        limit = _short(gate["limit"]) if "limit" in gate else "-"
        yield gate["gate"], gate["backend"], measured, limit, gate["verdict"], gate.get("detail", "")


def _short(value: float) -> str:
    return f"{value:.3g}"
