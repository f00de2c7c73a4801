"""What a server allows, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...core.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server; everything a client can make grow has one.

    Attributes:
        body_bytes: most bytes of one request's body.
        bodies_bytes: most bytes of all bodies held at once.
        connections: most connections open at once.
        rows: answers that run together.
        waiting: answers that wait for a row; more are refused with 429.
        max_tokens: most tokens that a request may ask for.
        prompts: most prompts, texts or choices of one request.
        head_s: seconds for a request's head to arrive on an idle connection.
        body_s: seconds for its body to arrive.
        request_s: seconds from the whole body to the last byte of the answer.
        drain_s: seconds that running requests get after SIGTERM.
    """

    body_bytes: int = 1 << 20
    bodies_bytes: int = 64 << 20
    connections: int = 2048
    rows: int = 16
    waiting: int = 256
    max_tokens: int = 1024
    prompts: int = 64
    head_s: float = 20.0
    body_s: float = 30.0
    request_s: float = 120.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < 1 << 40:
                expected = f"expected more than 0, got {value}"
                raise InputError(2111, "option value out of range", where=f"option {field.name}", expected=expected)
        if self.bodies_bytes < self.body_bytes:
            expected = f"expected at least body_bytes ({self.body_bytes}), got {self.bodies_bytes}"
            raise InputError(2111, "option value out of range", where="option bodies_bytes", expected=expected)
