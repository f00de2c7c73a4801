"""A server's life: open the bundle, listen, serve, drain, stop.

SIGTERM or Ctrl-C: ``/readyz`` says 503 and new requests get 503; running ones are finished for ``drain_s``; what
is left then ends with error 5032; nothing ends without an answer. A second signal cuts the draining short.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn

from ...core.console import message
from ...core.errors import EnvironmentFault, InputError
from ..options import Machine
from ..pipeline import COMPRESS_PARTS, GENERATE_PARTS, Pipeline
from ..scheduler.service import Service
from .answering import Answering
from .app import Served, make_app
from .compressing import Compressing
from .guard import Gate
from .metrics import Metrics
from .prompts import FRAME_TYPE
from .protocol import protocol
from .settings import Limits

SEND_BUFFER: Final = 64 << 10
"""Bytes."""


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0: any free one, which is said."""

    host: str = "127.0.0.1"
    port: int = 8000


def serve(
    bundle: Path, machine: Machine, limits: Limits, address: Address, name: str | None, keys: tuple[str, ...]
) -> int:
    """Serve until told to stop; returns the exit status.

    Args:
        bundle: folder made by ``latentwire export``.
        machine: what runs it.
        limits: bounds of everything that a client can make grow.
        address: where to listen.
        name: model name for clients; None: that of the LLM.
        keys: API keys; empty: none is asked for.

    Raises:
        BundleError, EnvironmentFault: as ``Pipeline.open``.
        EnvironmentFault: 5036 the address cannot be listened on.
    """
    _allow_connections(limits.connections)
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(_listening(address))
        gate, metrics = Gate(), Metrics()
        served = _served(opened, bundle, machine, limits, name, keys, gate, metrics)
        host, port = listener.getsockname()[:2]
        message(f"serving {served.model} on http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        if not keys and host not in ("127.0.0.1", "::1"):
            message("no API key is asked for: everybody who reaches this address can use it")
        server = _Server(_config(served), gate, limits.drain_s)
        server.run([listener])
    message(f"stopped; requests that were cut off: {server.cut_off}")
    return 0


def _config(served: Served) -> uvicorn.Config:
    limits = served.limits
    return uvicorn.Config(
        make_app(served),
        http=protocol(limits.head_s),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(limits.head_s) + 1,
        timeout_graceful_shutdown=5,
    )


def _served(
    opened: contextlib.ExitStack,
    bundle: Path,
    machine: Machine,
    limits: Limits,
    name: str | None,
    keys: tuple[str, ...],
    gate: Gate,
    metrics: Metrics,
) -> Served:
    """Everything behind the routes; ``opened`` closes it in the reverse order."""
    pipe = opened.enter_context(Pipeline.open(bundle, parts=GENERATE_PARTS, **asdict(machine)))
    # Hashed above. Engines of their own: a pipeline is for one thread, and graphs load when they are first used.
    reader = opened.enter_context(Pipeline.open(bundle, parts=("dequantise",), verify="size", **asdict(machine)))
    encoder = opened.enter_context(Pipeline.open(bundle, parts=COMPRESS_PARTS, verify="size", **asdict(machine)))
    service = Service(pipe.engine, pipe.tokenizer, rows=limits.rows, waiting=limits.waiting)
    opened.callback(service.close)
    compressing = Compressing(encoder, limits.waiting, gate)
    opened.callback(compressing.close)
    metrics.gauge("requests_held", "Requests between head and last byte.", lambda: gate.held)
    metrics.gauge("body_bytes_held", "Bytes of request bodies held.", lambda: gate.body_bytes)
    metrics.gauge("answers_running", "Answers that hold a row of the engine.", lambda: service.running)
    metrics.gauge("answers_waiting", "Answers that wait for a row.", lambda: service.waiting)
    metrics.gauge("texts_waiting", "Texts that wait to be compressed.", lambda: compressing.waiting)
    answering = Answering(service, reader, gate, limits, metrics)
    opened.callback(answering.close)
    model = name or pipe.bundle.manifest.llm.name
    return Served(model, _facts(pipe), answering, compressing, gate, limits, metrics, keys)


def _facts(pipe: Pipeline) -> dict[str, Any]:
    manifest = pipe.bundle.manifest
    return {
        "bundle": manifest.fingerprint,
        "encoder": manifest.encoder.fingerprint,
        "llm": manifest.llm.name,
        "precision": manifest.precision,
        "engine": pipe.engine.name,
        "latents": manifest.encoder.latents,
        "d_z": manifest.encoder.d_z,
        "text_tokens": manifest.encoder.max_tokens,
        "frame_type": FRAME_TYPE,
    }


class _Server(uvicorn.Server):
    """uvicorn, but signals drain first and are not raised again afterwards."""

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_s: float) -> None:
        super().__init__(config)
        self._gate, self._drain_s = gate, drain_s
        self.cut_off = 0
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT begin to drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._draining is None:
            self._gate.draining = True
            message(f"stopping: {self._gate.held} requests are held; they have {self._drain_s:g} s")
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self._cut()

    def _cut(self) -> None:
        if not self._gate.cut.is_set():
            self.cut_off = self._gate.held
            self._gate.cut.set()

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self._gate.held and not self._gate.cut.is_set():
                    await asyncio.sleep(0.05)
        self._cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # what was cut is being told so
                while self._gate.held:
                    await asyncio.sleep(0.05)
        self.should_exit = True


@contextlib.contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    where = f"{address.host}:{address.port}"
    try:
        family, kind, proto, _, found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: what the kernel holds for a client that does not read.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(found)
        listener.listen(2048)
        listener.setblocking(False)
    except (OSError, OverflowError) as e:
        fix = "choose another --host or --port, or stop what uses it"
        raise EnvironmentFault(5036, "cannot listen", where=where, expected=str(e), fix=fix) from e
    with contextlib.closing(listener):
        yield listener


def _allow_connections(count: int) -> None:
    """A connection is a file descriptor; the soft limit is often 1,024.

    Raises:
        InputError: 2111 the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + 256
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            expected = f"expected at most {max(hard - 256, 0)}: a process may open {hard} files here"
            raise InputError(2111, "option value out of range", where="option connections", expected=expected)
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
