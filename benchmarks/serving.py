"""A bounded load on a running ``latentwire serve``: how long answers take, and whether every request gets one.

In: a server's address. Out: one row for each number of clients. Closed loop: a client sends its next request when
the last one is answered; one that is refused with 429 or 503 is sent again after ``Retry-After``, one that finds no
server, because it is being restarted, after a second. An answer that breaks off is lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from ..core.errors import EnvironmentFault, LatentWireError
from ..core.extras import needs
from .figures import percentiles
from .inputs import Inputs, Sample

TRIES: Final = 1000
"""Times that a refused request is sent again before it counts as lost."""
GONE: Final = "no connection"
"""Stands among the statuses for a server that was not there."""


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        url: of the server, with ``/v1``.
        clients: numbers of clients at once, one row each.
        requests: of each row, all clients together.
        new_tokens: longest answer.
        key: API key, if the server asks for one.
    """

    url: str
    clients: tuple[int, ...] = (1, 8, 64)
    requests: int = 200
    new_tokens: int = 16
    key: str | None = None


@dataclass
class _Tally:
    """Of one row; times in seconds."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)
    lost: int = 0
    differing: int = 0


def load(what: Load, inputs: Inputs) -> list[dict[str, Any]]:
    """Send it and count.

    Raises:
        EnvironmentFault: 5011 httpx2 is missing; 5020 no server answers, or it refuses the requests themselves.
    """
    with needs("bench"):
        import httpx2
    try:
        return asyncio.run(_rows(what, inputs))
    except httpx2.HTTPError as e:
        raise _failed(what.url, f"{type(e).__name__}: {e}") from e


async def _rows(what: Load, inputs: Inputs) -> list[dict[str, Any]]:
    import httpx2

    headers = {"Authorization": f"Bearer {what.key}"} if what.key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=300, base_url=what.url) as http:
        model = (await _json(http, "GET", "/models"))["data"][0]["id"]
        bodies = [await _asked(http, model, sample, what.new_tokens) for sample in inputs.take(min(64, what.requests))]
        return [await _row(http, bodies, clients, what.requests) for clients in what.clients]


async def _asked(http: Any, model: str, sample: Sample, new_tokens: int) -> dict[str, Any]:
    body = {"input": sample.text, "on_too_long": "truncate"}
    frame = (await _json(http, "POST", "/compress", body))["data"][0]["frame"]
    return {"model": model, "prompt": sample.question, "frame": frame, "max_tokens": new_tokens, "stream": True}


async def _json(http: Any, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await http.request(method, path, json=body)
    if answer.status_code != 200:
        raise _failed(path, f"status {answer.status_code}: {answer.text[:200]}")
    found: dict[str, Any] = answer.json()
    return found


async def _row(http: Any, bodies: list[dict[str, Any]], clients: int, requests: int) -> dict[str, Any]:
    tally, numbers = _Tally(), iter(range(requests))

    async def client() -> None:
        for number in numbers:  # shared: each number goes to one client
            await _ask(http, bodies[number % len(bodies)], number % len(bodies), tally)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    return {
        "clients": clients,
        "answered": len(tally.whole),
        "a_minute": 60 * len(tally.whole) / seconds,
        "first_token_ms": _ms(tally.first),
        "answer_ms": _ms(tally.whole),
        "refused": {status: n for status, n in sorted(tally.statuses.items()) if status != "200"},
        "lost": tally.lost,
        "differing": tally.differing,
    }


async def _ask(http: Any, body: dict[str, Any], number: int, tally: _Tally) -> None:
    import httpx2

    for _ in range(TRIES):
        began, status = time.perf_counter(), GONE
        try:
            async with http.stream("POST", "/completions", json=body) as answer:
                status = str(answer.status_code)
                tally.statuses[status] += 1
                if status == "200":
                    text, first, ended = await _read(answer, began)
                    if ended:
                        _answered(tally, number, text, first, time.perf_counter() - began)
                        return
                    break
                if status not in ("429", "503"):
                    raise _failed(http.base_url, f"status {status}: {(await answer.aread())[:200]!r}")
                pause = float(answer.headers.get("retry-after", "1"))
        except httpx2.TransportError:
            if status == "200":  # its beginning was shown to somebody
                break
            if status == GONE:
                tally.statuses[GONE] += 1
            pause = 1.0
        await asyncio.sleep(pause)
    tally.lost += 1


async def _read(answer: Any, began: float) -> tuple[str, float | None, bool]:
    """Text of a stream, seconds to its first event, and whether it came to its end."""
    text, first = "", None
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            return text, first, True
        if line.startswith("data: {"):
            first = first or time.perf_counter() - began
            text += _piece(json.loads(line.removeprefix("data: ")))
    return text, first, False


def _piece(event: dict[str, Any]) -> str:
    return "".join(choice["text"] for choice in event.get("choices", ()))


def _answered(tally: _Tally, number: int, text: str, first: float | None, whole: float) -> None:
    tally.first.append(first or whole)
    tally.whole.append(whole)
    tally.differing += tally.texts.setdefault(number, text) != text


def _ms(seconds: list[float]) -> dict[str, float | None]:
    found = percentiles(seconds) if seconds else dict.fromkeys(percentiles([0.0]))
    return {name: None if s is None else s * 1000 for name, s in found.items()}


def _failed(where: object, why: str) -> LatentWireError:
    return EnvironmentFault(
        5020, "a benchmark of our own runtime failed", where=str(where), expected=why, fix="start `latentwire serve`"
    )
