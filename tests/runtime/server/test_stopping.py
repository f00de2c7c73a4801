"""SIGTERM: what runs is answered, what comes is refused, what takes too long is told so; then the process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from .conftest import HTTP, Running, Start

LONG: dict[str, Any] = {"model": "toy", "prompt": "When?", "max_tokens": 300, "n": 4}


def wait_until_running(server: Running) -> None:
    while server.metric("answers_running") == 0:
        time.sleep(0.02)


def test_running_requests_are_answered_and_new_ones_refused(start: Start) -> None:
    server = start("--drain", "60", "--batch-size", "1")
    client = server.client()
    wanted = client.completions.create(**LONG).choices[0].text
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(lambda: client.completions.create(**LONG))
        streamed = pool.submit(lambda: list(client.completions.create(**LONG, stream=True)))
        wait_until_running(server)
        while server.metric("requests_held") < 2:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        while not any("stopping" in line for line in server.said):
            time.sleep(0.02)
        assert HTTP.get(server.root + "/readyz").status_code == 503
        assert HTTP.get(server.root + "/healthz").status_code == 200
        late = HTTP.post(server.url + "/completions", json=LONG)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "LW-5032"
        assert late.headers["retry-after"] == "1"
        assert [choice.text for choice in whole.result().choices] == [wanted] * 4
        chunks = streamed.result()
    for index in range(4):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == wanted
    assert server.stop() == 0
    assert server.said[-1] == "stopped; requests that were cut off: 0\n"


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_not_finished_in_time_is_told_so(start: Start, twice: bool) -> None:
    """The time for draining ends, or a second signal ends it."""
    server = start("--drain", "60" if twice else "0.2", "--batch-size", "1")
    endless = {**LONG, "n": 64, "max_tokens": 1024}
    client = server.client()
    outcomes: list[str | None] = []

    def ask(stream: bool) -> None:
        with pytest.raises(openai.APIError) as cut:
            list(client.completions.create(**endless, stream=stream))
        outcomes.append(cut.value.code)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    while server.metric("requests_held") < 2 or server.metric("answers_running") == 0:
        time.sleep(0.02)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    if twice:
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
    for thread in threads:
        thread.join()
    assert server.stop() == 0
    assert outcomes == ["LW-5032", "LW-5032"]
    assert server.said[-1] == "stopped; requests that were cut off: 2\n"
    assert time.monotonic() - began < 30


def test_a_restart_under_load_loses_nothing(start: Start) -> None:
    """Clients that send a refused request again to the next server get every answer."""
    server = [start("--drain", "30")]
    wanted = server[0].client().completions.create(model="toy", prompt="When?", max_tokens=30).choices[0].text
    refused: Counter[str] = Counter()

    def ask(_: int) -> str:
        while True:
            try:
                answer = HTTP.post(
                    server[0].url + "/completions",
                    json={"model": "toy", "prompt": "When?", "max_tokens": 30},
                    timeout=60,
                )
            except httpx2.TransportError:  # no server listens, or it closed before it took the request
                refused["no connection"] += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                found: str = answer.json()["choices"][0]["text"]
                return found
            assert answer.status_code in (429, 503), answer.text
            refused[answer.json()["error"]["code"]] += 1
            time.sleep(0.05)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, i) for i in range(120)]
        while sum(answer.done() for answer in answers) < 10:
            time.sleep(0.01)
        server[0].process.send_signal(signal.SIGTERM)
        next_server = start("--drain", "30")
        first, server[0] = server[0], next_server
        assert first.stop() == 0
        assert first.said[-1] == "stopped; requests that were cut off: 0\n"  # what it took it answered
        assert [answer.result() for answer in answers] == [wanted] * 120


def test_an_address_in_use(served_bundle: Path, start: Start) -> None:
    server = start()
    command = [sys.executable, "-m", "latentwire.cli", "serve", str(served_bundle), "--port", str(server.port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 6
    assert run.stderr.startswith("LW-5036 cannot listen; 127.0.0.1:")
