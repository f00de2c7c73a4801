"""The routes: bodies in, answers out. What waits or computes lies behind ``Answering`` and ``Compressing``."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ...core.errors import InputError, LatentWireError
from ..answer import Answer
from ..codec import Codec
from ..compress import Compressed
from ..options import CompressOptions, GenerateOptions
from .answering import Answering
from .compressing import Compressing
from .faults import ParamError, body_of, headers_of, status_of, unknown_model
from .guard import ClientGone, Gate, Guard
from .metrics import Metrics
from .prompts import Asked, of_chat, of_completion
from .replies import Form, Reply
from .schema import Ask, ChatBody, CompletionBody, CompressBody, refuse_extras
from .settings import Limits
from .streaming import EventStream, events_of

LINE = ("\n",)
"""An answer to a question is one line, unless the request names other ends."""

SEEDS = (1 << 63) - 1
"""The largest seed."""


@dataclass(frozen=True)
class Served:
    """What the routes serve.

    Attributes:
        model: name that requests must give.
        facts: of the bundle, shown by ``/v1/models``.
        keys: API keys; empty: none is asked for.
    """

    model: str
    facts: dict[str, Any]
    answering: Answering
    compressing: Compressing
    gate: Gate
    limits: Limits
    metrics: Metrics
    keys: tuple[str, ...] = ()


def make_app(served: Served) -> ASGIApp:
    """The ASGI application."""
    app = FastAPI(title="LatentWire", version="1", docs_url=None, redoc_url=None)
    _handle_errors(app, served.metrics)
    _operator(app, served)
    _models(app, served)
    _generation(app, served)
    _compress(app, served)
    return Guard(app, served.gate, served.limits, served.keys, served.metrics)


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def told(error: LatentWireError, param: str | None = None) -> Response:
        metrics.refused(error)
        return JSONResponse(body_of(error, param), status_of(error), headers_of(error))

    @app.exception_handler(LatentWireError)
    async def _(request: Request, error: LatentWireError) -> Response:
        return told(error)

    @app.exception_handler(ParamError)
    async def _(request: Request, error: ParamError) -> Response:
        return told(error.error, error.param)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(step) for step in first["loc"] if step != "body")[:200]
        where = f"field {param}" if param else "body"
        return told(
            InputError(2130, "not a request of this endpoint", where=where, expected=first["msg"]), param or None
        )

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        code, what = (2134, "no such path") if error.status_code == 404 else (2130, str(error.detail))
        found = InputError(code, what, where=where, fix="see docs/server.md")
        metrics.refused(found)
        return JSONResponse(body_of(found), error.status_code)

    @app.exception_handler(ClientGone)
    async def _(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it; the number shows in the metrics


def _operator(app: FastAPI, served: Served) -> None:
    @app.get("/healthz")
    async def _() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def _() -> Response:
        draining = served.gate.draining
        return PlainTextResponse("stopping\n" if draining else "ready\n", 503 if draining else 200)

    @app.get("/metrics")
    async def _() -> Response:
        return Response(served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _models(app: FastAPI, served: Served) -> None:
    entry = {"id": served.model, "object": "model", "created": 0, "owned_by": "latentwire", "latentwire": served.facts}

    @app.get("/v1/models")
    async def _() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{name:path}")
    async def _(name: str) -> dict[str, Any]:
        _check_model(name, served)
        return entry


def _generation(app: FastAPI, served: Served) -> None:
    @app.post("/v1/completions")
    async def _(body: CompletionBody, request: Request) -> Response:
        asked = of_completion(body, served.limits.prompts)
        stop = () if asked[0].context is None else LINE
        return await _answer(request, served, body, asked, "text_completion", body.max_tokens or 16, stop)

    @app.post("/v1/chat/completions")
    async def _(body: ChatBody, request: Request) -> Response:
        limit = body.max_completion_tokens or body.max_tokens or min(128, served.limits.max_tokens)
        return await _answer(request, served, body, [of_chat(body)], "chat.completion", limit, LINE)


async def _answer(
    request: Request, served: Served, body: Ask, asked: list[Asked], form: Form, limit: int, stop: tuple[str, ...]
) -> Response:
    refuse_extras(body)
    _check_model(body.model, served)
    n = body.n or 1
    _check_most("max_tokens", limit, served.limits.max_tokens)
    _check_most("n", n * len(asked), served.limits.prompts)
    if body.stop is not None:
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    jobs = [(prompt, options) for prompt in asked for options in _options(body, limit, stop, n)]
    reply = Reply(form, served.model)
    events = served.answering.run(jobs, _gone(request))
    if body.stream:
        counts = bool(body.stream_options and body.stream_options.include_usage)
        return await EventStream.begun(events_of(events, reply, n, len(jobs), counts, served.metrics))
    choices: dict[int, Answer] = {}
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, Answer):
                choices[index] = event
    return JSONResponse(reply.whole([choices[i] for i in range(len(jobs))], n))


def _options(body: Ask, limit: int, stop: tuple[str, ...], n: int) -> list[GenerateOptions]:
    """Of each choice of a prompt: they differ in their seed only."""
    temperature, top_p = body.temperature or 0.0, 1.0 if body.top_p is None else body.top_p
    seed = secrets.randbits(62) if body.seed is None else body.seed
    return [
        GenerateOptions(limit, stop, temperature=temperature, top_p=top_p, seed=(seed + i) & SEEDS) for i in range(n)
    ]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_model(name: str, served: Served) -> None:
    if name != served.model:
        raise unknown_model(name, served.model)


def _check_most(param: str, got: int, most: int) -> None:
    if got > most:
        expected = f"expected at most {most}, got {got}"
        raise ParamError(InputError(2130, "over the server's limit", where=f"field {param}", expected=expected), param)


def _compress(app: FastAPI, served: Served) -> None:
    @app.post("/v1/compress")
    async def _(body: CompressBody) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        _check_most("input", len(texts), served.limits.prompts)
        if body.model is not None:
            _check_model(body.model, served)
        options = CompressOptions(
            body.codec, body.latents, body.on_too_long, ratio=body.ratio, max_bytes=body.max_bytes, protect=body.protect
        )
        found = await served.compressing.run(texts, options)
        frames = [_frame(i, one) for i, one in enumerate(_all_or_first_error(found))]
        served.metrics.compressed(len(frames), sum(frame["bytes"] for frame in frames))
        return {"object": "list", "model": served.model, "data": frames}


def _all_or_first_error(found: Sequence[Compressed | LatentWireError]) -> list[Compressed]:
    done: list[Compressed] = []
    for i, one in enumerate(found):
        if isinstance(one, LatentWireError):
            raise ParamError(one, f"input.{i}" if len(found) > 1 else "input")
        done.append(one)
    return done


def _frame(index: int, found: Compressed) -> dict[str, Any]:
    data = found.message.pack()
    codec = Codec(found.message.frames[0].codec)
    return {
        "object": "frame",
        "index": index,
        "frame": base64.b64encode(data).decode(),
        "bytes": len(data),
        "codec": codec.name.lower(),
        "latents": found.message.latents,
        "text_bytes": found.text_bytes,
        "text_tokens": found.tokens,
        "truncated": found.truncated,
    }
