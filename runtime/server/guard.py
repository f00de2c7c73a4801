"""What stands before the routes: who may ask, how much may be sent, and how long all of it may take.

An ASGI layer. It reads the whole body itself, within limits on its size, its time and all bodies together, so
that a slow or endless sender costs a bounded buffer and nothing else. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.errors import EnvironmentFault, InputError, LatentWireError
from .faults import body_of, headers_of, out_of_time, overloaded, status_of, stopping
from .metrics import Metrics
from .settings import Limits

OPEN: Final = ("/healthz", "/readyz", "/metrics")
"""Paths for the operator: no key, no body, answered while draining."""

DISCARD: Final = 16
"""A body over the limit is read and dropped up to this many times the limit, so that its sender sees the answer."""


class Gate:
    """Whether the server still takes requests, and how many it holds."""

    def __init__(self) -> None:
        self.draining = False
        self.held = 0
        self.body_bytes = 0
        self.cut = asyncio.Event()
        """Set when the time for draining is over: what still runs ends with 5032."""


class Guard:
    """The layer itself.

    Args:
        app: the routes.
        keys: API keys, one of which a request must carry; empty: none is asked for.
    """

    def __init__(self, app: ASGIApp, gate: Gate, limits: Limits, keys: Collection[str], metrics: Metrics) -> None:
        self._app, self._gate, self._limits, self._metrics = app, gate, limits, metrics
        self._keys = frozenset(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        began, counted = time.monotonic(), _Counted(send)
        self._gate.held += 1
        held = 0
        try:
            self._admit(scope)
            body, held = await self._body(scope, receive)
            async with asyncio.timeout(self._limits.request_s + 1):  # routes end by themselves before
                await self._app(scope, _Replay(body, receive), counted)
        except ClientGone:
            pass
        except LatentWireError as error:
            await self._refuse(error, scope, receive, counted)
        except TimeoutError:
            await self._give_up(scope, receive, counted)
        finally:
            self._gate.held -= 1
            self._gate.body_bytes -= held
            self._metrics.request(scope, counted.status, time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        """Raises LatentWireError 5032, 2133."""
        if self._gate.draining:
            raise stopping()
        if self._keys:
            scheme, _, key = _header(scope, b"authorization").partition(" ")
            given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
            if given not in self._keys:  # digests: what comparing takes tells nothing of a key
                fix = "send the header Authorization: Bearer KEY"
                raise InputError(2133, "no API key, or an unknown one", fix=fix)

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        """The body and the bytes it holds of the common budget. Raises LatentWireError 2132, 5033, 5034."""
        try:
            async with asyncio.timeout(self._limits.body_s):
                return await self._read(scope, receive)
        except TimeoutError:
            expected = f"expected it within {self._limits.body_s:g} s"
            raise EnvironmentFault(5033, "request body came too slowly", expected=expected) from None

    async def _read(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        limit, declared = self._limits.body_bytes, _header(scope, b"content-length")
        room = self._limits.bodies_bytes - self._gate.body_bytes
        parts: list[bytes] = []
        size, more = 0, True
        refused = int(declared or 0) > min(limit, room)
        held = 0
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size, more = size + len(part), message.get("more_body", False)
                if refused or size > limit or self._gate.body_bytes + len(part) > self._limits.bodies_bytes:
                    refused = True
                    parts.clear()
                    if size > DISCARD * limit:
                        break
                else:
                    parts.append(part)
                    held += len(part)
                    self._gate.body_bytes += len(part)
            if refused and max(size, int(declared or 0)) > limit:
                expected = f"expected at most {limit} bytes"
                raise InputError(2132, "request body too large", expected=expected, fix="send less at once")
            if refused:
                raise overloaded("bytes of request bodies", self._limits.bodies_bytes)
        except BaseException:
            self._gate.body_bytes -= held
            raise
        return b"".join(parts), held

    async def _refuse(self, error: LatentWireError, scope: Scope, receive: Receive, send: _Counted) -> None:
        self._metrics.refused(error)
        headers = {**headers_of(error), "Connection": "close"}
        await JSONResponse(body_of(error), status_of(error), headers)(scope, receive, send)

    async def _give_up(self, scope: Scope, receive: Receive, send: _Counted) -> None:
        """The client does not read, or a route forgot its deadline."""
        if send.status == 0:
            await self._refuse(out_of_time(self._limits.request_s), scope, receive, send)
        elif transport := scope.get("latentwire.transport"):
            transport.abort()  # close() would wait for ever for what the client does not take


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


class _Counted:
    """``send`` that remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Replay:
    """``receive`` that gives the body that was read, then what the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()


def _header(scope: Scope, name: bytes) -> str:
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if found else ""


def _digest(key: str) -> bytes:
    """Keys are held and compared as SHA-256."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
