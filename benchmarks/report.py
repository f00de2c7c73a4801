"""A report: tables for people, one JSON object for programs, a file of each.

In: rows and facts. Out: text on stdout, ``.md`` and ``.json`` files. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.console import message, print_json, print_table, print_text
from ..core.files import atomic_write_bytes, atomic_write_json
from . import machine

SCHEMA: Final = 1


@dataclass
class Table:
    """One table: a title that says what and under which conditions, columns, rows of plain values."""

    title: str
    columns: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)

    def markdown(self) -> str:
        """As a Markdown table."""
        head = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        body = ["| " + " | ".join("" if v is None else str(v) for v in row) + " |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", *head, *body])


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        kind: ``throughput``, ``latency`` and so on.
        tables: for people.
        data: for programs and charts, raw values included.
        facts: machine, versions, command, inputs, fingerprints, load.
        remarks: sentences that belong to the figures.
    """

    kind: str
    tables: list[Table]
    data: dict[str, Any]
    facts: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One object; figures that are missing are null."""
        return {"schema": SCHEMA, "kind": self.kind, **self.facts, "remarks": self.remarks, "data": self.data}

    def markdown(self) -> str:
        """Tables, remarks and conditions."""
        found = self.facts["machine"]
        where = f"{found['cpu']}, {found['processors']} processors, Python {found['python']}"
        run = f"`{self.facts['command']}`, commit {str(self.facts['commit'])[:12]}"
        run += " with changes" if self.facts["dirty"] else ""
        told = [f"{where}; {run}; {self.facts['date']}; {others_words(self.facts)}."]
        parts = [f"## {self.kind}", *[table.markdown() for table in self.tables]]
        return "\n\n".join([*parts, *[f"- {x}" for x in self.remarks], *told])

    def show(self, as_json: bool) -> None:
        """On stdout: tables and remarks, then the JSON line; with ``as_json`` only that line."""
        if not as_json:
            for table in self.tables:
                print_table(table.columns, table.rows, table.title)
                print_text()
            for remark in self.remarks:
                print_text(remark)
        print_json(self.to_json())


def closed(facts: dict[str, Any], remarks: list[str]) -> None:
    """Add what others used meanwhile; warn if it was too much. Call it when the measured processes have ended."""
    facts["load_after"] = machine.load()
    facts["others_processors"] = machine.others(facts.pop("used_before"), machine.used())
    if warning := machine.disturbed(facts["others_processors"]):
        remarks.append(f"BUSY MACHINE: {warning}.")
        message(warning)


def others_words(facts: Mapping[str, Any]) -> str:
    """``others used 0.02 processors``."""
    found = facts.get("others_processors")
    return "what others used is unknown" if found is None else f"others used {found:.2f} processors"


def write(reports: Sequence[Report], stem: Path, pictures: bool = True) -> list[Path]:
    """Write ``STEM.md``, ``STEM.json`` and, with ``pictures``, ``STEM.png``; returns what was written."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(stem.name + ".md"), stem.with_name(stem.name + ".json")]
    head = f"# {stem.name}\n\n" + (f"![charts]({stem.name}.png)\n\n" if pictures else "")
    atomic_write_bytes(files[0], (head + "\n\n".join(r.markdown() for r in reports) + "\n").encode())
    atomic_write_json(files[1], {"schema": SCHEMA, "reports": [r.to_json() for r in reports]})
    if pictures:
        from .charts import draw

        files.append(stem.with_name(stem.name + ".png"))
        draw([r.to_json() for r in reports], files[-1])
    return files


def whole(value: float | None, unit: str = "") -> str:
    """``1,234`` or ``-``."""
    return "-" if value is None else f"{value:,.0f}{unit}"


def share(value: float | None) -> str:
    """``12 %`` or ``-``."""
    return "-" if value is None else f"{100 * value:.0f} %"


def spreads(found: Mapping[str, Any]) -> str:
    """``612 (606 to 618)``, marked ``~`` where rounds differ too much to trust."""
    noise = " ~" if found["noisy"] else ""
    return f"{found['median']:,.0f} ({found['min']:,.0f} to {found['max']:,.0f}){noise}"


def times(found: Mapping[str, float] | None) -> str:
    """``4.0x [3.9, 4.1]`` or ``-``."""
    return "-" if found is None else f"{found['median']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"
