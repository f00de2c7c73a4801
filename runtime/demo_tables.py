"""What the demo prints: its documents, its rates, and what the checkpoint is worth.

In: lines, rates, figures. Out: tables on stdout. Runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..core.console import print_table, print_text
from .rates import Rate

_KINDS: Final = {"none": "no context", "first": "first {M} tokens", "latents": "latents", "full": "full text"}


@dataclass(frozen=True)
class Line:
    """One document of the demo, from end to end."""

    document: str
    text_bytes: int
    wire_bytes: int
    text_positions: int
    latent_positions: int
    question: str
    gold: str
    from_latents: str
    from_text: str


def show(lines: list[Line], rates: dict[str, Rate], facts: dict[str, Any]) -> None:
    """The tables of the run itself."""
    columns = ["document", "UTF-8 bytes", "wire bytes", "LLM tokens", "latents", "question", "expected"]
    rows = [
        (
            x.document,
            x.text_bytes,
            x.wire_bytes,
            x.text_positions,
            x.latent_positions,
            x.question,
            x.gold,
            _short(x.from_latents),
            _short(x.from_text),
        )
        for x in lines
    ]
    print_table([*columns, "answer from latents", "answer from full text"], rows)
    tokens, latents = sum(x.text_positions for x in lines), sum(x.latent_positions for x in lines)
    sent, text = sum(x.wire_bytes for x in lines), sum(x.text_bytes for x in lines)
    hits = [
        sum(holds(a, x.gold) for x, a in ((x, getattr(x, n)) for x in lines)) for n in ("from_latents", "from_text")
    ]
    print_text(f"\nThe model reads {latents} latents in place of {tokens} tokens ({tokens / latents:.1f} times fewer).")
    print_text(f"On the wire they take {sent:,} bytes, {sent / text:.1f} times the {text:,} bytes of the texts.")
    print_text(
        f"The expected answer is found {hits[0]} times of {len(lines)} from latents, {hits[1]} times from full text.\n"
    )
    fast = [(n, f"{r.median:.0f}", f"{r.slowest:.0f} to {r.fastest:.0f}") for n, r in rates.items()]
    title = (
        f"samples a minute, {facts['engine']} {facts['precision']}, batches of {facts['batch_size']}, {facts['cpu']}"
    )
    print_table(["path", "median", f"of {facts['rounds']} alternating rounds"], fast, title)


def show_quality(quality: dict[str, Any], llm: str) -> None:
    """What the checkpoint scored on held-out questions by other people, with a plain verdict."""
    found = quality.get("llms", {}).get(llm, {})
    kinds = found.get("rows", {})
    if not kinds:
        print_text("\nThis checkpoint carries no measured quality.")
        return
    rows = []
    for kind, name in _KINDS.items():
        if row := kinds.get(kind):
            cells = [f"{row[c]:.3f}" if c in row else "-" for c in ("nll", "first_token", "f1")]
            rows.append((name.format(M=quality.get("latents", "M")), f"{row['context_positions']:g}", *cells))
    title = f"\nthe checkpoint on {found.get('questions', '?')} held-out questions (NLL: lower is better)"
    print_table(["the model sees", "positions", "NLL, nats/token", "first token right", "F1"], rows, title)
    print_text(verdict(found, quality.get("latents", "M")))


def verdict(found: dict[str, Any], latents: object) -> str:
    """One honest sentence for each measure that an LLM of the checkpoint was scored with.

    Latents are level with the first tokens where the 95 % interval of the difference holds 0.
    """
    kinds, apart = found["rows"], found.get("latents_minus_first", {})
    names = {"none": "no context", "first": f"the first {latents} tokens"}
    said = []
    for column, name, sign in (("nll", "NLL", -1), ("f1", "F1", 1)):
        own = kinds["latents"].get(column)
        if own is None:
            continue
        sorts: dict[str, list[str]] = {"beat": [], "are level with": [], "do NOT beat": []}
        for kind in (k for k in names if k in kinds):
            interval = apart.get(f"{column}_ci") if kind == "first" else None
            won = "beat" if sign * (own - kinds[kind][column]) > 0 else "do NOT beat"
            level = interval and interval[0] <= 0 <= interval[1]
            sorts["are level with" if level else won].append(names[kind])
        parts = (
            f"{what} {(' nor ' if 'NOT' in what else ' and ').join(which)}" for what, which in sorts.items() if which
        )
        said.append(f"By {name} the latents {' and '.join(parts)}.")
    nll = {kind: row["nll"] for kind, row in kinds.items()}
    share = (nll["none"] - nll["latents"]) / (nll["none"] - nll["full"])
    return " ".join([*said, f"They close {share:.0%} of the NLL gap between no context and the full text."])


def holds(answer: str, gold: str) -> bool:
    """The expected words stand in the answer, letter case aside."""
    return gold.casefold() in answer.casefold()


def _short(answer: str, limit: int = 48) -> str:
    return answer if len(answer) <= limit else answer[: limit - 1] + "…"
