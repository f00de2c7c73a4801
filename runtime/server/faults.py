"""Errors as HTTP answers: our code, a status, and the JSON shape that OpenAI's clients read.

{"error": {"message": "LW-2135 ...", "type": "invalid_request_error", "param": "frame", "code": "LW-2135"}}
"""

from __future__ import annotations

from typing import Any, Final

from ...core.errors import EnvironmentFault, FrameError, InputError, LatentWireError, RowError

RETRY_AFTER_S: Final = 1

_STATUS: Final = {
    2007: 413,
    2132: 413,
    2133: 401,
    2134: 404,
    3002: 400,
    3101: 400,
    5031: 504,
    5032: 503,
    5033: 408,
    5034: 429,
}
"""By code; the rest goes by class."""

_TYPE: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def status_of(error: LatentWireError) -> int:
    """HTTP status: 4xx where another request would do, 5xx where another server would."""
    by_class = 400 if isinstance(error, FrameError | RowError | InputError) else 500
    if isinstance(error, EnvironmentFault):
        by_class = 503
    return _STATUS.get(error.code, by_class)


def body_of(error: LatentWireError, param: str | None = None) -> dict[str, Any]:
    """The JSON of one error. Lone surrogates in the message become escapes: JSON must be valid UTF-8."""
    status = status_of(error)
    kind = _TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    said = str(error).encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": said, "type": kind, "param": param, "code": error.label}}


def headers_of(error: LatentWireError) -> dict[str, str]:
    """``Retry-After`` where it is worth trying again."""
    status = status_of(error)
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    after_s = error.after_s if isinstance(error, Busy) else RETRY_AFTER_S
    return {"Retry-After": str(after_s)} if status in (429, 503) else {}


class Busy(EnvironmentFault):
    """5034, with the seconds after which there should be room."""

    def __init__(self, what: str, limit: int, after_s: int) -> None:
        expected = f"this server holds {limit} {what} at once"
        super().__init__(5034, "server is busy", expected=expected, fix="try again after Retry-After seconds")
        self.after_s = after_s


class ParamError(Exception):
    """An error and the field of the request that caused it."""

    def __init__(self, error: LatentWireError, param: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.param = param


def unsupported(name: str, why: str) -> ParamError:
    """2131: a field of OpenAI's interface that this server has no use for."""
    error = InputError(2131, "not supported by this server", where=f"field {name}", expected=why, fix="leave it out")
    return ParamError(error, name)


def unknown_model(asked: str, served: str) -> ParamError:
    """2134: the request names another model."""
    error = InputError(2134, "no such model", where=f"model {asked[:100]!r}", expected=f"this server has {served}")
    return ParamError(error, "model")


def out_of_time(seconds: float) -> LatentWireError:
    """5031: the request's time is over."""
    expected = f"expected an answer within {seconds:g} s"
    fix = "ask for fewer tokens, or try again when the server is less busy"
    return EnvironmentFault(5031, "request took too long", expected=expected, fix=fix)


def stopping() -> LatentWireError:
    """5032: the server is going down."""
    return EnvironmentFault(5032, "server is stopping", fix="send the request again to the next server")


def overloaded(what: str, limit: int, after_s: int = RETRY_AFTER_S) -> LatentWireError:
    """5034: a bound of the server is reached."""
    return Busy(what, limit, after_s)
