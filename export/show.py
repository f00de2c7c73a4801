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
    if m.plans:
        plans = [
            (part, f"{p.package} {p.version}", ", ".join(p.gpus), str(p.batch), str(p.length), f"{p.seconds:.0f} s")
            for part, p in m.plans.items()
        ]
        print_table(["plan", "compiled by", "for", "rows up to", "length up to", "took"], plans)
    show_parity(m.quality.get("parity", {}))
    show_cost(m.quality.get("precision", {}))


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


def show_cost(cost: dict[str, Any]) -> None:
    """Print what ``loss.measure_loss`` found."""
    if not cost:
        return
    sentences, questions = cost["sentences"], cost["questions"]
    rows = [
        ("nats a token", f"{sentences['count']} sentences", "nll_fp32", "nll", "nll_rise", sentences),
        ("same next token", f"{sentences['tokens']} tokens", None, "same_choice", None, sentences),
    ]
    if latents := cost.get("latents"):  # a bundle that was measured before encoders had a precision has none
        rows.append(("cosine of latents", f"{latents['count']} latents", None, "cosine", None, latents))
    for kind in ("latents", "full_text"):
        on = f"{questions['count']} questions, {kind.replace('_', ' ')}"
        rows.append(("F1", on, "f1_fp32", "f1", "f1_difference", questions[kind]))
        rows.append(("same answer", on, None, "same_answer", None, questions[kind]))
    columns = ["measure", "on", "fp32", "this", "difference [95 %]"]
    print_table(columns, [(what, on, *(_cell(of, key) for key in keys)) for what, on, *keys, of in rows])


def _cell(figures: dict[str, Any], key: str | None) -> str:
    if key is None:
        return "-"
    figure = figures[key]
    low, high = figure["ci"]
    if key == "cosine":
        return f"{figure['mean']:.4f}"
    return (
        f"{figure['mean']:.3f} [{low:.3f}, {high:.3f}]"
        if key.endswith(("rise", "difference"))
        else f"{figure['mean']:.3f}"
    )
