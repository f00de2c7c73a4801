"""Counts and times for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ...core.errors import LatentWireError

PATHS: Final = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/compress")
"""Paths with a label of their own; all others share one, so that nobody can make labels without bound."""

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Everything that ``/metrics`` shows."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "latentwire_requests",
            "Requests by path and HTTP status; 0: the client left.",
            ["path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "latentwire_request_seconds",
            "From the head to the last byte.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter("latentwire_errors", "Errors by code.", ["code"], registry=registry)
        self._first = Histogram(
            "latentwire_first_token_seconds", "From submission to the first text.", buckets=_SECONDS, registry=registry
        )
        self._answers = Counter("latentwire_answers", "Finished answers by reason.", ["reason"], registry=registry)
        self._prompt = Counter(
            "latentwire_prompt_positions", "Positions of prompts, latents included.", registry=registry
        )
        self._new = Counter("latentwire_new_tokens", "Tokens generated.", registry=registry)
        self._texts = Counter("latentwire_compressed_texts", "Texts compressed.", registry=registry)
        self._frame_bytes = Counter("latentwire_frame_bytes", "Bytes of frames made.", registry=registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show what ``read`` returns whenever somebody asks."""
        Gauge(f"latentwire_{name}", text, registry=self._registry).set_function(read)

    def request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """A request is over."""
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, error: LatentWireError) -> None:
        """An error was answered."""
        self._refused.labels(error.label).inc()

    def first(self, seconds: float) -> None:
        """A first token is there."""
        self._first.observe(seconds)

    def answered(self, reason: str, prompt_positions: int, new_tokens: int) -> None:
        """An answer is finished."""
        self._answers.labels(reason).inc()
        self._prompt.inc(prompt_positions)
        self._new.inc(new_tokens)

    def compressed(self, texts: int, frame_bytes: int) -> None:
        """Texts became frames."""
        self._texts.inc(texts)
        self._frame_bytes.inc(frame_bytes)

    def text(self) -> bytes:
        """The page, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
