"""Too much, too slow, gone: each costs its own request and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from .conftest import HTTP, Running, Start

SHORT: dict[str, Any] = {"model": "toy", "prompt": "When?", "max_tokens": 4}
LONG: dict[str, Any] = {"model": "toy", "prompt": "When?", "max_tokens": 1024, "n": 4}


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def small(start: Start) -> Iterator[Running]:
    """Little of everything."""
    server = start("--max-body", "4096", "--queue", "8", "--batch-size", "2", "--idle", "1")
    yield server
    assert server.process.poll() is None
    eventually(lambda: server.metric("requests_held") == 0)
    assert server.metric("body_bytes_held") == 0
    assert server.client().completions.create(**SHORT).choices[0].text


def test_bodies_over_the_limit(small: Running) -> None:
    for size in (5000, 60_000):
        with pytest.raises(openai.APIStatusError) as refused:
            small.client().completions.create(model="toy", prompt="x" * size)
        assert refused.value.status_code == 413
        assert refused.value.code == "LW-2132"
    parts = (b"x" * 1000 for _ in range(20))  # chunked: no length is declared
    assert HTTP.post(small.url + "/completions", content=parts).status_code == 413
    with connect(small) as endless:  # declares gigabytes: answered without reading them
        endless.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 80_000
        )
        assert b" 413 " in endless.recv(4096)


def test_idle_connections_and_slow_heads_are_closed(small: Running) -> None:
    with connect(small) as silent, connect(small) as slow:
        slow.sendall(b"POST /v1/comp")
        began = time.monotonic()
        slow.sendall(b"letions HTT")
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
        assert 0.5 < time.monotonic() - began < 10


def test_too_many_wait(small: Running) -> None:
    def ask(_: int) -> tuple[int, str, str]:
        answer = HTTP.post(small.url + "/completions", json={**SHORT, "max_tokens": 200}, timeout=30)
        return answer.status_code, answer.headers.get("retry-after", ""), answer.text

    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(ask, range(40)))
    counts = Counter(status for status, _, _ in found)
    assert set(counts) == {200, 429}, counts
    assert counts[200] >= 8
    for status, retry, text in found:
        assert (status == 429) == (retry != "") == ("LW-5034" in text)
        assert not retry or 1 <= int(retry) <= 30
    with pytest.raises(openai.RateLimitError):  # more choices than can wait: none of them is begun
        small.client().completions.create(model="toy", prompt=["x"] * 40, max_tokens=1000)
    eventually(lambda: small.metric("answers_waiting") == 0)


def test_the_refused_are_told_how_long_half_of_the_queue_takes(start: Start) -> None:
    server = start("--batch-size", "1", "--queue", "40")
    one = {**LONG, "n": 1}
    began = time.monotonic()
    for _ in range(4):
        assert HTTP.post(server.url + "/completions", json=one, timeout=60).status_code == 200
    each = (time.monotonic() - began) / 4
    with connect(server) as full:
        full.sendall(request_bytes({**LONG, "n": 40}))
        eventually(lambda: server.metric("requests_held") == 1)
        answer = HTTP.post(server.url + "/completions", json={**LONG, "n": 2})
    assert answer.status_code == 429
    print(f"{each:.2f} s an answer, Retry-After {answer.headers['retry-after']}")
    assert 1 < int(answer.headers["retry-after"]) <= 30
    assert int(answer.headers["retry-after"]) >= min(30, 0.5 * 20 * each)


def test_a_request_that_takes_too_long(start: Start) -> None:
    server = start("--timeout", "2", "--batch-size", "1")
    client = server.client()
    with pytest.raises(openai.APIStatusError) as late:
        client.completions.create(**{**LONG, "n": 32})
    assert late.value.status_code == 504
    assert late.value.code == "LW-5031"
    stream = client.completions.create(**{**LONG, "n": 32}, stream=True)  # it began well
    with pytest.raises(openai.APIError) as cut:
        list(stream)
    assert cut.value.code == "LW-5031"


def test_clients_that_leave_free_their_rows(start: Start) -> None:
    server = start("--batch-size", "1", "--timeout", "60")
    began = time.monotonic()
    for stream in (False, True):
        with connect(server) as connection:
            connection.sendall(request_bytes({**LONG, "n": 64, "stream": stream}))
            eventually(lambda: server.metric("answers_running") == 1)
        eventually(lambda: server.metric("requests_held") == 0, 10)
    assert server.client().completions.create(**SHORT).choices[0].text
    eventually(lambda: server.metric("answers_waiting") == 0)
    assert time.monotonic() - began < 40


def test_a_client_that_never_reads_is_hung_up_on(start: Start) -> None:
    server = start("--timeout", "8")
    with socket.socket() as deaf:
        assert server.metric("requests_held") == 0  # the event loop runs; it has sockets of its own
        before = server.sockets()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(request_bytes({**LONG, "n": 15, "stream": True}))
        eventually(lambda: server.metric("requests_held") == 1)
        assert server.client().completions.create(**SHORT).choices[0].text  # others go on
        eventually(lambda: server.metric("requests_held") == 0, 20)
        eventually(lambda: server.sockets() <= before, 10)  # what it never took is not kept for it


def test_a_thousand_connections_at_once(start: Start) -> None:
    """Every one is answered: with an answer or with 429; memory stays where it was."""
    server = start("--queue", "64", "--connections", "1200")
    server.client().completions.create(**SHORT)
    before = server.rss_mib()

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await gate.wait()
        writer.write(request_bytes(SHORT))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1])

    async def crowd() -> list[int]:
        asking = [asyncio.ensure_future(ask()) for _ in range(1000)]
        await asyncio.sleep(1)  # all connected, none has asked
        gate.set()
        return await asyncio.wait_for(asyncio.gather(*asking), 100)

    gate = asyncio.Event()
    counts = Counter(asyncio.run(crowd()))
    grown = server.rss_mib() - before
    print(f"1000 connections: {dict(counts)}, {grown:.1f} MiB more")
    assert set(counts) == {200, 429}, counts
    assert counts[200] >= 64
    assert grown < 100
    assert server.client().completions.create(**SHORT).choices[0].text
