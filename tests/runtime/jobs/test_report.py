"""What a finished job tells of itself: percentiles from histograms of bounded size, and one page of HTML."""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from latentwire.core.console import configure
from latentwire.core.errors import InputError
from latentwire.runtime.jobs import report as reports
from latentwire.runtime.jobs.cli import app
from latentwire.runtime.jobs.commit import JobFolder
from latentwire.runtime.jobs.drawing import BARS, bars, histogram
from latentwire.runtime.jobs.merge import merge_jobs
from latentwire.runtime.jobs.report import SHOWN, escape, write_report
from latentwire.runtime.jobs.sealed import read_sealed, seal
from latentwire.runtime.jobs.source import open_source
from latentwire.runtime.jobs.spread import Spread, bin_of, bin_width
from latentwire.runtime.jobs.status import read_status
from latentwire.runtime.jobs.table import read_table
from latentwire.runtime.jobs.verify import verify_job

from .stub import contents, run_stub, stub_job, write_input

EVIL = '<script>alert("1")</script>'
VOID = {"meta"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    run_stub(stub_job(write_input(tmp_path / "in.jsonl")), tmp_path / "out")
    return tmp_path / "out"


class Page(HTMLParser):
    """Tags that open and close as they should, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [] if tag in VOID else [tag]
        self.links += [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " " * (self.open[-1:] == ["td"])


@given(st.lists(st.integers(0, 1 << 40), min_size=1), st.integers(0, 100))
def test_a_percentile_is_the_ranked_number_or_in_its_bin(values: list[int], percent: int) -> None:
    spread = Spread.of(values)
    exact = sorted(values)[max(-(-len(values) * percent // 100), 1) - 1]
    found = spread.percentile(percent)
    assert min(values) <= found <= max(values)
    assert abs(found - exact) <= bin_width(exact) // 2 <= exact / 128
    assert (found == exact) or exact >= 128
    assert spread.summary()["max"] == max(values)
    assert spread.summary()["min"] == min(values)


@given(st.lists(st.lists(st.integers(0, 100_000))))
def test_spreads_add_up_in_any_order(parts: list[list[int]]) -> None:
    whole, backwards = Spread.of([n for part in parts for n in part]).to_json(), Spread()
    for part in reversed(parts):
        backwards.add(Spread.read(json.loads(json.dumps(Spread.of(part).to_json()))))
    assert backwards.to_json() == whole


def test_the_histogram_of_a_commit_is_small_whatever_is_counted() -> None:
    rng = random.Random(1)
    spread = Spread.of(int(2 ** rng.uniform(0, 26)) for _ in range(50_000))
    assert len(spread.counts) <= 128 + 64 * 19
    assert all(bin_of(low) == low for low in spread.counts)
    with pytest.raises(ValueError, match="nothing"):
        Spread().percentile(50)
    assert Spread().summary() == {}


@given(st.lists(st.integers(0, 1 << 30), min_size=1))
def test_bars_hold_every_number_once(values: list[int]) -> None:
    found = bars(Spread.of(values))
    assert [sum(first <= v < end for v in values) for first, end, _ in found] == [count for _, _, count in found]
    assert sum(count for _, _, count in found) == len(values)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert len(found) <= max(BARS + 1, 4 * 31)


def test_totals_are_what_the_tables_hold(job: Path) -> None:
    totals = JobFolder(job).read_manifest()["totals"]
    rows = [row for table in open_source(job).tables for row in read_table(table) if row.message]
    sizes = [len(row.message.pack()) for row in rows if row.message]
    tokens = [row.n_tokens or 0 for row in rows]
    assert totals["percentiles"]["wire_bytes"]["p50"] == statistics.median_low(sizes)
    assert totals["percentiles"]["tokens"]["max"] == max(tokens)
    assert totals["percentiles"]["latents"] == dict.fromkeys(("min", "p5", "p50", "p95", "max"), 0)
    assert totals["percentiles"]["ratio_percent"]["min"] == min(
        100 * t // s for t, s in zip(tokens, sizes, strict=True)
    )
    assert totals["text_tokens"] == totals["tokens"] == sum(tokens)
    assert totals["ratio_tokens"] == 1
    assert totals["ratio_bytes"] == round(sum(tokens) / sum(sizes), 4)


def test_the_manifest_repeats_no_histogram_of_a_shard(job: Path) -> None:
    manifest = JobFolder(job).read_manifest()
    assert all("spread" not in shard for shard in manifest["shards"])
    counted = manifest["spread"]["tokens"]["counts"]
    assert sum(counted.values()) == manifest["totals"]["rows"] - manifest["totals"]["errors"] == 16


def test_a_job_that_lost_a_shard_and_its_manifest_tells_the_same_again(job: Path, tmp_path: Path) -> None:
    before = contents(job)
    (job / "manifest.json").unlink()
    (job / "commits" / "00001.json").unlink()
    assert read_status(job)["rows_done"] == 13
    run_stub(stub_job(str(tmp_path / "in.jsonl")), job)
    assert contents(job) == before


def test_a_changed_histogram_is_found(job: Path) -> None:
    path = job / "manifest.json"
    manifest = read_sealed(path)
    manifest["spread"]["tokens"]["counts"]["13"] += 1
    path.write_bytes(seal(manifest))
    with pytest.raises(InputError, match="totals of the manifest are not the sum"):
        verify_job(job)


def test_2108_shards_of_another_version_are_made_again(job: Path, tmp_path: Path) -> None:
    before = contents(job)
    path = job / "commits" / "00002.json"
    old = {k: v for k, v in read_sealed(path).items() if k != "spread"}
    path.write_bytes(seal(old))
    with pytest.raises(InputError, match=r"LW-2108 .*another version"):
        verify_job(job)
    run_stub(stub_job(str(tmp_path / "in.jsonl")), job)
    assert contents(job) == before


def test_merged_jobs_have_the_spread_of_both(job: Path, tmp_path: Path) -> None:
    other = tmp_path / "in2.jsonl"
    other.write_text(json.dumps({"custom_id": "z", "text": "a rather longer text " * 20}) + "\n", encoding="utf-8")
    run_stub(stub_job(str(other)), tmp_path / "out2")
    manifest = merge_jobs([job, tmp_path / "out2"], tmp_path / "both")
    assert manifest["totals"]["percentiles"]["tokens"]["max"] == 420
    verify_job(tmp_path / "both")
    write_report(tmp_path / "both", tmp_path / "both.html")
    assert "job " + manifest["merged"][0]["fingerprint"] in Page(tmp_path / "both.html").text


def test_summary_and_report_of_compress(toy_bundle: Path, tmp_path: Path) -> None:
    docs, out, page = tmp_path / f"{EVIL.replace('/', '')}.jsonl", tmp_path / "out", tmp_path / "new" / "page.html"
    texts = ["" if i == 4 else "x" * (200 if i == 5 else 10 + i) for i in range(12)]
    rows = [{"custom_id": f"{EVIL}\0{i}" + "\ud800" * (i == 5), "text": t} for i, t in enumerate(texts)]
    docs.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    words = ("run", docs, "-o", out, "-b", toy_bundle, "--workers", 0, "-q", "--max-bytes", 500, "--report", page)
    result = call(*words)
    assert result.exit_code == 3
    said = " ".join(result.stdout.split())
    for text in (
        "rows compressed 10 of 12",
        "compression in tokens 1.96 times smaller",
        "times larger",
        "8 latents a text, at most 500 bytes a text",
        "LW-2005 x 1",
        "tokens 10 10 16 21 21 latents 8 8 8 8 8 bytes of frames 120 120 120 120 120 text by frames 0.08",
    ):
        assert text in said
    found = Page(page)
    assert found.tags["svg"] == 3
    assert "tokens 10 10 16 21 21 latents 8" in re.sub(r"\s+", " ", found.text.replace("\n", " "))
    assert (found.tags["script"], found.links) == (0, [])
    raw = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in raw
    assert not re.search("[\x00-\x09\x0b-\x1f]", raw)
    for text in (f"{EVIL}\\x004", docs.name, "LW-2005", "on too long", "toy", "version of", "at most 500 bytes"):
        assert text in found.text
    first = page.read_bytes()
    assert call("report", out, "-o", page, "-q").exit_code == 0
    assert page.read_bytes() == first
    assert list(page.parent.iterdir()) == [page]
    machine = json.loads(call(*words, "--json").stdout)
    assert machine["percentiles"]["tokens"]["p95"] == 21
    assert "spread" not in machine


def test_few_examples_of_many_failed_rows_and_long_tables_are_folded(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EXAMPLES", 1)
    monkeypatch.setattr(reports, "FOLDED", 3)
    monkeypatch.setattr(reports, "SHOWN", 2)
    write_report(job, tmp_path / "r.html")
    found = Page(tmp_path / "r.html")
    assert found.text.count("text is empty") == 1
    assert found.tags["details"] == 1
    assert "The first 2 of 4" in found.text
    assert SHOWN == 1000


def test_2111_a_report_that_is_no_page_is_refused_before_the_work(toy_bundle: Path, tmp_path: Path) -> None:
    docs, out = write_input(tmp_path / "in.jsonl"), tmp_path / "out"
    (tmp_path / "folder.html").mkdir()
    for name in ("report.pdf", "report", "folder.html"):
        result = call("run", docs, "-o", out, "-b", toy_bundle, "-q", "--report", tmp_path / name)
        assert result.exit_code == 5
        assert result.stderr.startswith("LW-2111 the report is an HTML page")
        assert name in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not out.exists()


def test_2108_no_report_of_an_unfinished_or_damaged_job(job: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    path = job / "errors" / "part-00000.jsonl"
    good = path.read_bytes()
    path.write_bytes(good[:20] + b"\n")
    assert call("report", job, "-o", page).stderr.startswith("LW-2108 record of failed rows is damaged")
    path.write_bytes(good)
    (job / "manifest.json").unlink()
    result = call("report", job, "-o", page)
    assert result.exit_code == 5
    assert "unfinished" in result.stderr
    assert not page.exists()


def test_text_of_others_is_harmless() -> None:
    assert escape('<a href="x">&\x1b[0m\n') == "&lt;a href=&quot;x&quot;&gt;&amp;\\x1b[0m\\x0a"
    assert len(escape("x" * 10_000)) < 500
    assert histogram(Spread(), "a", "b") == "<p>No row was compressed.</p>"
