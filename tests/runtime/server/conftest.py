"""Real server processes on the toy bundle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from latentwire.engines.toy import write_toy_bundle

HTTP = httpx2.Client(timeout=60, limits=httpx2.Limits(max_keepalive_connections=0))
"""For requests by hand; making a client takes longer than a request."""


class Running:
    """A ``latentwire serve`` process that answers."""

    def __init__(self, bundle: Path, *options: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "latentwire.cli", "serve", str(bundle), "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("serving "):
                break
        else:
            raise AssertionError("".join(self.said))
        self.url = self.said[-1].split(" on ")[1].strip()
        self.model = self.said[-1].split()[1]
        self.port = int(self.url.rsplit(":", 1)[1].split("/")[0])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def root(self) -> str:
        """Without ``/v1``."""
        return self.url.removesuffix("/v1")

    def client(self, key: str = "none") -> OpenAI:
        """OpenAI's own client, without its retries."""
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60, http_client=HTTP)

    def metric(self, name: str) -> float:
        """A gauge or counter without labels."""
        for line in HTTP.get(f"{self.root}/metrics").text.splitlines():
            if line.startswith(f"latentwire_{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def rss_mib(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def sockets(self) -> int:
        """Open sockets of the process."""
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found += str(link.readlink()).startswith("socket:")
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal, wait, return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
        self.process.stderr.close()


Start = Callable[..., Running]


@contextmanager
def _starter(bundle: Path) -> Iterator[Start]:
    started: list[Running] = []

    def start(*options: str, env: dict[str, str] | None = None) -> Running:
        started.append(Running(bundle, *options, env=env))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long windows, so that answers may be long."""
    return write_toy_bundle(tmp_path_factory.mktemp("served"), max_tokens=4096).path


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[Running]:
    """One server for the tests of a file."""
    with _starter(served_bundle) as start:
        yield start()


@pytest.fixture
def start(served_bundle: Path) -> Iterator[Start]:
    """Starts servers with options of their own; they are gone after the test."""
    with _starter(served_bundle) as starter:
        yield starter
