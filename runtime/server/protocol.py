"""uvicorn's HTTP/1.1 protocol with two things more: a deadline for a request's head, and a way to hang up."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(head_s: float) -> type[asyncio.Protocol]:
    """The class for ``uvicorn.Config(http=...)``; ``head_s``: seconds until the first head must have come."""

    class Deadline(H11Protocol):
        """A connection that sends no whole head in time is closed; the app may abort its transport."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            inner: Any = self.app

            async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
                await inner({**scope, "latentwire.transport": self.transport}, receive, send)

            self.app = with_transport

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._seen = self.cycle
            self._timer = self.loop.call_later(head_s, self._late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._timer.cancel()
            self._seen = self.cycle
            self._timer = self.loop.call_later(head_s, self._late)

        def _late(self) -> None:
            if self.cycle is self._seen:  # no request since
                self.transport.abort()

    return Deadline
