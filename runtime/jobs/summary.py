"""A finished job in a few lines, told from its manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_COLUMNS: Final = {"min": "min", "p5": "5 %", "p50": "median", "p95": "95 %", "max": "max"}
COLUMNS: Final = ("what", *_COLUMNS.values())
_NAMES: Final = {
    "tokens": "tokens",
    "latents": "latents",
    "wire_bytes": "bytes of frames",
    "ratio_percent": "text by frames",
}


def lines(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What and how much: rows, text, frames, rates asked for and obtained."""
    totals, codec = manifest["totals"], manifest["table"]["codec"]
    rows, asked = totals["rows"] - totals["errors"], asked_rate(manifest)
    found = [
        ("rows compressed", f"{rows} of {totals['rows']}"),
        ("text", f"{totals['text_bytes']:,} bytes, {totals['tokens']:,} tokens"),
        (f"frames, codec {codec}", f"{totals['wire_bytes']:,} bytes"),
        ("latents", f"{totals['latents']:,} in place of {totals['tokens'] - totals['text_tokens']:,} tokens"),
        ("compression in tokens", _times(totals["ratio_tokens"])),
        ("compression in bytes", _times(totals["ratio_bytes"])),
    ]
    found += [("asked for", ", ".join(asked))] if asked else []
    found += [("failed", f"{totals['errors']} rows: {failures(manifest)}")] if totals["errors"] else []
    found += [("sent as text", f"{totals['fallback']} rows")] if totals["fallback"] else []
    found += [("chunked", f"{totals['chunks']} frames")] if totals["chunks"] > rows else []
    found += [("truncated", f"{totals['truncated']} rows")] if totals["truncated"] else []
    return found


def percentiles(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a table with ``COLUMNS``; none where no row was compressed."""
    found = manifest["totals"]["percentiles"]
    return [
        (label, *(_number(name, found[name][key]) for key in _COLUMNS))  # on the disk keys are sorted
        for name, label in _NAMES.items()
        if found[name]
    ]


def failures(manifest: Mapping[str, Any]) -> str:
    """``LW-2005 x 3, LW-2006 x 1``."""
    return ", ".join(f"{code} x {count}" for code, count in manifest["totals"]["errors_by_code"].items())


def asked_rate(manifest: Mapping[str, Any]) -> list[str]:
    """The rate, as it was asked for; each row keeps it or is an error."""
    options, latents = manifest.get("options", {}), manifest["table"]["latents"]
    found = [f"{latents} latents a text"] if latents and manifest["table"]["codec"] != "text" else []
    found += [f"text at least {options['ratio']:g} times the frames"] if options.get("ratio") is not None else []
    return found + ([f"at most {options['max_bytes']} bytes a text"] if options.get("max_bytes") is not None else [])


def _number(name: str, value: int) -> str:
    return f"{value / 100:.2f}" if name == "ratio_percent" else f"{value:,}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "nothing was compressed"
    return f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"
