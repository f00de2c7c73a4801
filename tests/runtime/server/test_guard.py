"""The layer before the routes, by itself: bodies that come slowly, in pieces, or all at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from latentwire.core.errors import InputError
from latentwire.runtime.server.guard import Gate, Guard
from latentwire.runtime.server.metrics import Metrics
from latentwire.runtime.server.settings import Limits

LIMITS = Limits(body_bytes=100, bodies_bytes=150, body_s=0.2, request_s=0.2)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def call(
    guard: Guard, parts: Iterable[bytes | float], length: int | None = None, end: bool = True
) -> tuple[int, bytes]:
    """Send parts of a body (numbers: seconds of waiting); returns status and body."""
    steps, sent = list(parts), []
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/compress", "headers": headers}

    async def receive() -> Message:
        while steps and isinstance(steps[0], float):
            await asyncio.sleep(float(steps.pop(0)))
        if steps:
            part = steps.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(steps) or not end}
        if end:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await guard(scope, receive, send)
    status = sent[0]["status"] if sent else 0
    return status, b"".join(message.get("body", b"") for message in sent)


def made(app: Any = echo, limits: Limits = LIMITS) -> tuple[Guard, Gate]:
    gate = Gate()
    return Guard(app, gate, limits, (), Metrics()), gate


def code_of(body: bytes) -> str:
    code: str = json.loads(body)["error"]["code"]
    return code


def test_bodies_within_the_limit_arrive_whole() -> None:
    guard, gate = made()
    assert asyncio.run(call(guard, [b"a" * 60, b"b" * 40])) == (200, b"a" * 60 + b"b" * 40)
    assert asyncio.run(call(guard, [b""])) == (200, b"")
    assert (gate.held, gate.body_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("parts", "length", "status", "code"),
    [
        ([b"a" * 101], None, 413, "LW-2132"),
        ([b"a" * 60, b"b" * 41], None, 413, "LW-2132"),
        ([b"a"] * 5000, None, 413, "LW-2132"),
        ([b"a"], 101, 413, "LW-2132"),
        ([b"a", 1.0, b"b"], None, 408, "LW-5033"),
        ([b"a", 0.15, b"b", 0.15, b"c"], None, 408, "LW-5033"),
    ],
)
def test_bodies_over_a_limit(parts: list[bytes | float], length: int | None, status: int, code: str) -> None:
    guard, gate = made()
    found, body = asyncio.run(call(guard, parts, length))
    assert (found, code_of(body)) == (status, code)
    assert (gate.held, gate.body_bytes) == (0, 0)


def test_a_client_that_leaves_while_it_sends_gets_nothing() -> None:
    guard, gate = made()
    assert asyncio.run(call(guard, [b"a"], end=False)) == (0, b"")
    assert (gate.held, gate.body_bytes) == (0, 0)


def test_all_bodies_together_have_a_limit() -> None:
    guard, gate = made()

    async def both() -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        return await asyncio.gather(call(guard, [b"a" * 90, 0.1, b"."]), call(guard, [0.05, b"b" * 90]))

    (first, _), (second, body) = asyncio.run(both())
    assert (first, second, code_of(body)) == (200, 429, "LW-5034")
    assert gate.body_bytes == 0


def test_a_route_that_never_ends_is_ended() -> None:
    async def sleeps(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    guard, gate = made(sleeps)
    status, body = asyncio.run(call(guard, [b""]))
    assert (status, code_of(body)) == (504, "LW-5031")
    assert gate.held == 0


def test_limits_are_checked() -> None:
    for changes in ({"rows": 0}, {"request_s": -1.0}, {"body_bytes": 10, "bodies_bytes": 9}):
        with pytest.raises(InputError) as refused:
            Limits(**changes)
        assert refused.value.code == 2111
