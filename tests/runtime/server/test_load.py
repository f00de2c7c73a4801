"""``latentwire bench serve``: the load generator against real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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


def test_a_restart_loses_nothing(start: Start) -> None:
    """SIGTERM while clients ask: what was taken is answered, the rest waits for the next server at the address."""
    server = start("--drain", "60", "--batch-size", "2")
    with ThreadPoolExecutor(1) as pool:
        many = ("--clients", "12", "--requests", "120", "--new-tokens", "60")
        load = pool.submit(bench, server.url, *many)
        while server.metric("requests_held") < 12:
            time.sleep(0.01)
        assert server.stop() == 0
        assert server.said[-1] == "stopped; requests that were cut off: 0\n"
        time.sleep(0.5)
        start("--port", str(server.port))
        run = load.result()
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(run.stdout)["rows"]
    assert (row["answered"], row["lost"], row["differing"]) == (120, 0, 0)
    assert set(row["refused"]) <= {"503", "no connection"}
    assert row["refused"]["no connection"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_answers_that_are_cut_off_count_as_lost(start: Start, number: int) -> None:
    """With a word of the server, or without one."""
    server = start("--drain", "0.1", "--batch-size", "1")
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(bench, server.url, "--clients", "1", "--requests", "1", "--new-tokens", "1000")
        while server.metric("first_token_seconds_count") == 0:
            time.sleep(0.01)
        time.sleep(0.05)  # the first piece is on its way
        server.stop(number)
        run = load.result()
    assert run.returncode == 3
    assert json.loads(run.stdout)["rows"][0]["lost"] == 1


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
