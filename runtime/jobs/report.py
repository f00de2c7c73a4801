"""A finished job as one HTML page that needs nothing else: no script, no font, no network.

In: the job's folder, which is not changed. Everything that comes from there is escaped, and the page forbids browsers
to load or to run anything. The same folder gives the same page on the same machine.
"""

from __future__ import annotations

import html
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...core.errors import InputError
from ...core.files import atomic_write_bytes
from . import summary
from .commit import JobFolder, job_faults
from .drawing import histogram
from .spread import Spread
from .totals import SPREAD

SUFFIXES: Final = (".html", ".htm")
EXAMPLES: Final = 3
"""Failed rows that are shown of each code."""
SHOWN: Final = 1000
"""Rows of the longest table of the page."""
FOLDED: Final = 20
"""Rows of the longest table that is shown unfolded."""
_CUT: Final = 400
"""Characters of a message."""
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_CHARTS: Final = (
    ("tokens", "Tokens of a row", "tokens", 1),
    ("wire_bytes", "Bytes of a row's frames", "bytes", 1),
    ("ratio_percent", "Bytes of the text by bytes of its frames", "times", 100),
)
_PART: Final = ("shard", "file", "start", "rows", "errors", "tokens", "latents", "text_bytes", "wire_bytes", "device")
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } div.wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; unicode-bidi: isolate; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0 1rem 1rem 0; width: 32rem; max-width: 100%; }
svg { width: 100%; } rect { fill: #4477aa; } line { stroke: currentColor; }
text { fill: currentColor; font-size: 12px; }
""".strip()


def require_page(path: Path) -> None:
    """Refuse a name that is none of a page, before any work.

    Raises:
        InputError: 2111.
    """
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        got = f"the folder {path.name!r}" if path.is_dir() else repr(path.name)
        expected = f"expected a file that ends in {' or '.join(SUFFIXES)}, got {got}"
        raise InputError(2111, "the report is an HTML page", where="option report", expected=expected)


def write_report(folder: Path, page: Path) -> None:
    """Write the page of a finished job; an older one is replaced whole or not at all.

    Raises:
        InputError: 2108 not finished, damaged, or made by another version; 2111 ``page`` has no name of a page.
        EnvironmentFault: 5004, 5005, 5007.
    """
    require_page(page)
    manifest = JobFolder(folder).read_manifest()
    if SPREAD not in manifest:
        fix = "run the job's command again: what is missing is made again"
        raise InputError(2108, "the job is of another version", where=str(folder), expected=f"no {SPREAD!r}", fix=fix)
    atomic_write_bytes(page, "".join(_page(folder, manifest)).encode("utf-8", "backslashreplace"))


def _page(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    name = escape(folder.resolve().name)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<style>{_STYLE}</style></head><body>\n<h1>Compression job {name}</h1>\n"
    yield _table(("what", "how much"), summary.lines(manifest))
    yield "<h2>Rows</h2>\n" + _table(summary.COLUMNS, summary.percentiles(manifest))
    for key, title, unit, scale in _CHARTS:
        chart = histogram(Spread.read(manifest[SPREAD][key]), title, unit, scale)
        yield f"<figure><figcaption>{title}</figcaption>{chart}</figure>\n"
    yield from _errors(folder, manifest)
    yield "<h2>Options</h2>\n" + _table(("option", "value"), _options(manifest))
    yield "<h2>Machine</h2>\n" + _table(("what", "value"), _machines(manifest))
    inputs = [(i["name"], i["rows"], i["bytes"], i["sha256"]) for i in manifest.get("inputs", [])]
    inputs += [(f"job {m['fingerprint']}", m["rows"], "", "") for m in manifest.get("merged", [])]
    yield "<h2>Inputs</h2>\n" + _long(("name", "rows", "bytes", "SHA-256"), inputs, len(inputs))
    shards = manifest["shards"]
    parts = ([_value(s.get(k)) for k in _PART] for s in shards)
    yield "<h2>Shards</h2>\n" + _long([k.replace("_", " ") for k in _PART], parts, len(shards))
    yield "</body></html>\n"


def _errors(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    counts = manifest["totals"]["errors_by_code"]
    yield "<h2>Failed rows</h2>\n"
    if not counts:
        yield "<p>None.</p>\n"
        return
    yield _table(("code", "rows"), list(counts.items()))
    examples = sorted(_examples(folder, manifest), key=lambda example: example[0])
    yield f"<h3>The first of each code, at most {EXAMPLES}</h3>\n"
    yield _table(("code", "id", "message"), examples)


def _examples(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Code, id and message of the first rows of each code; files without any that is wanted are not opened."""
    left = Counter({code: min(count, EXAMPLES) for code, count in manifest["totals"]["errors_by_code"].items()})
    job = JobFolder(folder)
    for shard in manifest["shards"]:
        if not any(left[code] > 0 for code in shard["errors_by_code"]):
            continue
        path = job.errors_part(shard["shard"])
        with job_faults(path), path.open("rb") as file:
            for line in file:
                row = _error_row(path, line)
                if left[row[0]] > 0:
                    left[row[0]] -= 1
                    yield row


def _error_row(path: Path, line: bytes) -> tuple[str, str, str]:
    try:
        row = json.loads(line)
        return str(row["error_code"]), str(row["custom_id"]), str(row["error_message"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        what, fix = "record of failed rows is damaged", "run the job's command again with --verify full"
        raise InputError(2108, what, where=str(path), expected=str(e), fix=fix) from e


def _options(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = {**manifest["table"], **manifest.get("options", {})}
    found |= {f"field {k}" if k in ("id", "text", "keep") else k: v for k, v in manifest.get("fields", {}).items()}
    found |= {k: manifest[k] for k in ("shard_rows", "fsync", "skipped", "fingerprint") if k in manifest}
    return [(k.replace("_", " "), _value(v)) for k, v in found.items()]


def _machines(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What computed the shards, as their records say, and what wrote this page."""
    known = {*_PART, "fingerprint", "fsync", "input_sha256", "bytes", "sha256", "errors_bytes", "errors_sha256"}
    known |= {*manifest["totals"], "poison"}
    seen: Counter[tuple[str, str]] = Counter()
    for shard in manifest["shards"]:
        facts = {k: v for k, v in shard.items() if k not in known and k != "versions"} | {"device": shard["device"]}
        facts |= {f"version of {k}": v for k, v in shard["versions"].items()}
        seen.update((k.replace("_", " "), _value(v)) for k, v in facts.items())
    count = len(manifest["shards"])
    found = [(k, v if n == count else f"{v} ({n} of {count} shards)") for (k, v), n in sorted(seen.items())]
    here = f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    return [*found, ("this page was written on", here)]


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _long(columns: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    shown = [row for _, row in zip(range(SHOWN), rows, strict=False)]
    table = _table(columns, shown)
    if count > len(shown):
        table += f"<p>The first {len(shown):,} of {count:,}; manifest.json has all.</p>\n"
    return f"<details><summary>{count:,} rows</summary>{table}</details>\n" if count > FOLDED else table


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def escape(value: object) -> str:
    """Text as it may stand anywhere in the page: no tag, no control character, not too long."""
    text = value if isinstance(value, str) else str(value)
    text = text if len(text) <= _CUT else text[:_CUT] + " ..."
    return html.escape(_CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text))
