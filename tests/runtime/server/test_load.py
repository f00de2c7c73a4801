"""``latentwire bench serve``: the load generator against real servers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import Running, Start


def bench(url: str, *options: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "latentwire.cli", "bench", "serve", url, "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_every_request_is_answered_and_alike(server: Running) -> None:
    run = bench(server.url, "--clients", "1", "--clients", "8", "--requests", "40")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert [row["clients"] for row in rows] == [1, 8]
    for row in rows:
        assert (row["answered"], row["lost"], row["differing"]) == (40, 0, 0)
        assert 0 < row["first_token_ms"]["p50"] <= row["answer_ms"]["p50"] <= row["answer_ms"]["p95"]


def test_refused_requests_are_sent_again(start: Start) -> None:
    server = start("--queue", "2", "--batch-size", "2")
    run = bench(server.url, "--clients", "12", "--requests", "24", "--new-tokens", "40")
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(run.stdout)["rows"]
    assert row["refused"]["429"] > 0
    assert (row["answered"], row["lost"]) == (24, 0)


def test_no_server(server: Running) -> None:
    for url in ("http://127.0.0.1:9/v1", server.root):
        run = bench(url)
        assert run.returncode == 6
        assert run.stderr.startswith("LW-5020 ")


@pytest.mark.slow
def test_a_thousand_requests_are_held_at_once(start: Start) -> None:
    """With a queue that is long enough nothing is refused; memory is bounded, and given back rows serve the next."""
    server = start("--queue", "1000", "--connections", "1200")
    before = server.rss_mib()
    run = bench(server.url, "--clients", "1000", "--requests", "2000", timeout=580)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(run.stdout)["rows"]
    grown = server.rss_mib() - before
    print(f"1000 clients: {row}, {grown:.1f} MiB more")
    assert (row["answered"], row["lost"], row["differing"], row["refused"]) == (2000, 0, 0, {})
    assert grown < 200
