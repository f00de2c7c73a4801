"""The figures of one LLM as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .kinds import parse

HEAD = ["the LLM sees", "tokens", "bytes", "NLL (nats/token)", "first token", "top 5", "F1", "F1 named", "F1 other"]
COLUMNS = ["EM", "distinct"]
SHOWN = {
    "utf8": "",
    "zstd": " zstd",
    "frame f16": " f16",
    "frame i8": " i8",
    "frame fsq/1": " fsq",
    "frame fsq/2": " fsq",
    "frame hybrid": " hybrid",
    "rows f16": " f16",
}
"""Forms of a row that a table shows, and the unit behind the number."""


def table(of_llm: Mapping[str, Any], latents: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for ``print_table``; intervals stand behind NLL and F1, all others are in the JSON."""
    rows = []
    for name, row in of_llm["rows"].items():
        cells = [parse(name).title(latents), f"{row['context_positions']:g}", _bytes(row["bytes"], parse(name).codec)]
        for column, wide in (("nll", True), ("first_token", False), ("first_token_top5", False), ("f1", True)):
            cells.append(_cell(row, column, wide))
        cells += [_cell(row, column, False) for column in ("f1_named", "f1_other", "em")]
        rows.append([*cells, f"{row['distinct_first_tokens']:g}"])
    return HEAD + COLUMNS, rows


def _bytes(sizes: Mapping[str, float], codec: str) -> str:
    shown = [(form, unit) for form, unit in SHOWN.items() if form in sizes and (not codec or f" {codec}" in form)]
    return " / ".join(f"{sizes[form]:.0f}{unit}" for form, unit in shown) or "0"


def _cell(row: Mapping[str, Any], column: str, wide: bool) -> str:
    if row.get(column) is None:
        return "-"
    ci = row.get(f"{column}_ci")
    return f"{row[column]:.3f}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if wide and ci else "")


def remarks(of_llm: Mapping[str, Any]) -> list[str]:
    """What the rows say together, a line each."""
    names = {
        "gap_closed": "gap closed (0 none, 1 full text; all with the task token)",
        "gap_closed_plain": "gap closed against plain prompts",
        "shuffle_gap": "shuffle gap, nats/token",
        "f1_of_full": "F1 over full text's",
        "f1_of_first": "F1 over first tokens'",
        "latents_i8_kept": "F1 kept through codec i8",
        "latents_fsq_kept": "F1 kept through codec fsq",
        "latents_hybrid_kept": "F1 through codec hybrid over F1 without",
    }
    lines = [f"{text}: {_cell(of_llm, name, True)}" for name, text in names.items() if name in of_llm]
    for column, value in (of_llm.get("latents_minus_first") or {}).items():
        if not column.endswith("_ci"):
            low, high = of_llm["latents_minus_first"][f"{column}_ci"]
            lines.append(f"latents minus first tokens, {column}: {value:+.3f} [{low:+.3f}, {high:+.3f}]")
    return lines


def ensemble_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Joint choice and each LLM alone, as columns and rows."""
    joint = f"{found['f1']:.3f} [{found['f1_ci'][0]:.3f}, {found['f1_ci'][1]:.3f}]"
    low, high = found["minus_best_ci"]
    rows = [["joint", joint, f"{found['em']:.3f}", f"{found['minus_best']:+.3f} [{low:+.3f}, {high:+.3f}]"]]
    rows += [[name, f"{own['f1']:.3f}", f"{own['em']:.3f}", ""] for name, own in found["single"].items()]
    return ["who answers", "F1", "EM", "F1 minus the best alone"], rows
