"""Requests that are wrong in one way each: status, code, the field at fault, and a server that goes on."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.runtime import message, wire
from latentwire.runtime.codec import Codec
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline

from .conftest import HTTP, Running, Start

CHAT, COMPLETIONS, COMPRESS = "/chat/completions", "/completions", "/compress"
USER = {"role": "user", "content": "When?"}
PREFIX = "data:application/vnd.latentwire.frame;base64,"


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "toy", "messages": [USER], **changes}


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": "toy", "prompt": "When?", **changes}


def with_file(url: str, role: str = "user") -> dict[str, Any]:
    content = [{"type": "file", "file": {"file_data": url}}, {"type": "text", "text": "When?"}]
    return chat(messages=[{"role": role, "content": content}, USER])


BAD: list[tuple[str, dict[str, Any], int, int, str | None]] = [
    (COMPLETIONS, {}, 400, 2130, "model"),
    (COMPLETIONS, completion(prompt=7), 400, 2130, None),
    (COMPLETIONS, completion(prompt=[]), 400, 2130, None),
    (COMPLETIONS, completion(prompt=""), 400, 2005, "prompt"),
    (COMPLETIONS, completion(prompt=["a", " "]), 400, 2005, "prompt.1"),
    (COMPLETIONS, completion(prompt=["x"] * 65), 400, 2130, "prompt"),
    (COMPLETIONS, completion(n=65), 400, 2130, "n"),
    (COMPLETIONS, completion(n=0), 400, 2130, "n"),
    (COMPLETIONS, completion(max_tokens=1025), 400, 2130, "max_tokens"),
    (COMPLETIONS, completion(max_tokens=0), 400, 2130, "max_tokens"),
    (COMPLETIONS, completion(max_tokens="16"), 400, 2130, "max_tokens"),
    (COMPLETIONS, completion(max_tokens=True), 400, 2130, "max_tokens"),
    (COMPLETIONS, completion(temperature=-1), 400, 2130, "temperature"),
    (COMPLETIONS, completion(temperature=3), 400, 2130, "temperature"),
    (COMPLETIONS, completion(top_p=0), 400, 2130, "top_p"),
    (COMPLETIONS, completion(stop=""), 400, 2130, None),
    (COMPLETIONS, completion(stop=["a"] * 5), 400, 2130, None),
    (COMPLETIONS, completion(seed=1 << 64), 400, 2130, "seed"),
    (COMPLETIONS, completion(colour="blue"), 400, 2130, "colour"),
    (COMPLETIONS, completion(stream=True, stream_options={"colour": 1}), 400, 2130, "stream_options.colour"),
    (COMPLETIONS, completion(logprobs=1), 400, 2131, "logprobs"),
    (COMPLETIONS, completion(echo=True), 400, 2131, "echo"),
    (COMPLETIONS, completion(best_of=2), 400, 2131, "best_of"),
    (COMPLETIONS, completion(presence_penalty=0.5), 400, 2131, "presence_penalty"),
    (COMPLETIONS, completion(frame="!!!"), 400, 2135, "frame"),
    (COMPLETIONS, completion(frame="YWJj\nZGVm"), 400, 2135, "frame"),
    (COMPLETIONS, completion(frame="YWJ"), 400, 2135, "frame"),
    (COMPLETIONS, completion(frame="ü"), 400, 2135, "frame"),
    (COMPLETIONS, completion(frame="AAAA"), 400, 1101, "frame"),
    (COMPLETIONS, completion(frame=""), 400, 1102, "frame"),
    (COMPLETIONS, completion(frame=["AAAA", "AAAA"]), 400, 2130, "frame"),
    (COMPLETIONS, completion(frame="AAAA", context="text"), 400, 2130, "context"),
    (COMPLETIONS, completion(prompt="x" * 40_000), 400, 2006, "prompt"),
    (COMPLETIONS, completion(model="gpt-9"), 404, 2134, "model"),
    (CHAT, chat(messages=[]), 400, 2130, "messages"),
    (CHAT, chat(messages=[{"role": "robot", "content": "x"}]), 400, 2130, "messages.0.role"),
    (CHAT, chat(messages=[USER, {"role": "assistant", "content": "Then."}]), 400, 2130, "messages"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, 2130, None),
    (CHAT, chat(tools=[{"type": "function"}]), 400, 2131, "tools"),
    (CHAT, chat(top_logprobs=3, logprobs=True), 400, 2131, None),
    (CHAT, chat(response_format={"type": "json_object"}), 400, 2131, "response_format"),
    (CHAT, with_file("https://example.org/frame"), 400, 2135, "messages.0.content.0.file"),
    (CHAT, with_file(PREFIX + "?"), 400, 2135, "messages.0.content.0.file"),
    (CHAT, with_file(PREFIX + "AAAA", "assistant"), 400, 2130, "messages.0.content.0.file"),
    (CHAT, chat(messages=[with_file(PREFIX)["messages"][0]] * 2), 400, 2131, "messages"),
    (COMPRESS, {"input": ""}, 400, 2005, "input"),
    (COMPRESS, {"input": ["fine", "\n"]}, 400, 2005, "input.1"),
    (COMPRESS, {"input": "x", "codec": "gzip"}, 400, 2130, "codec"),
    (COMPRESS, {"input": "x", "latents": 0}, 400, 2130, "latents"),
    (COMPRESS, {"input": "x", "colour": 1}, 400, 2130, "colour"),
    (COMPRESS, {"input": "x" * 5000}, 400, 2006, "input"),
    (COMPRESS, {"input": "x", "max_bytes": 1}, 400, 2111, None),
    ("/embeddings", {"input": "x"}, 404, 2134, None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), BAD)
def test_one_clear_error(
    server: Running, path: str, body: dict[str, Any], status: int, code: int, param: str | None
) -> None:
    answer = HTTP.post(server.url + path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == f"LW-{code}", error
    assert error["message"].startswith(f"LW-{code} ")
    assert param is None or error["param"] == param
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


RAW = [
    b"",
    b"{",
    b"[1, 2]",
    b"\xff\xfe",
    b'{"model": "toy", "prompt": NaN}',
    b"[" * 100_000,
    b'{"model": "toy", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"model": "toy", "prompt": "x", "temperature": Infinity}',
]


@pytest.mark.parametrize("body", RAW)
def test_bodies_that_are_not_json_of_an_object(server: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = HTTP.post(server.url + COMPLETIONS, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "LW-2130"


def test_half_a_character(server: Running) -> None:
    body, headers = b'{"model": "toy", "prompt": "\\ud800"}', {"Content-Type": "application/json"}
    answer = HTTP.post(server.url + COMPLETIONS, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "LW-2009")


def test_neutral_values_of_fields_that_are_not_served(server: Running) -> None:
    neutral = {"logprobs": False, "tools": [], "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}}
    assert HTTP.post(server.url + CHAT, json=chat(**neutral, user="me")).status_code == 200
    assert HTTP.post(server.url + COMPLETIONS, json=completion(best_of=1, echo=False)).status_code == 200


def test_a_frame_of_another_encoder(server: Running, other_bundle: Path) -> None:
    with Pipeline.open(other_bundle) as pipe:
        frame = base64.b64encode(pipe.compress(["A text."])[0]).decode()
    answer = HTTP.post(server.url + COMPLETIONS, json=completion(frame=frame))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "LW-3101"


def test_frames_with_wrong_numbers(server: Running, served_bundle: Path) -> None:
    """Latents of another width, a value that is not finite under a good checksum, a byte that fell over."""
    with Pipeline.open(served_bundle) as pipe:
        (good,) = pipe.compress(["A text."], CompressOptions(codec="f16"))
        encoder = pipe.bundle.manifest.encoder
    narrow = message.from_latents([np.ones((2, encoder.d_z // 2), np.float32)], Codec.F16, encoder.model_id).pack()
    body = good[wire.HEADER_SIZE : -2] + np.float16(np.nan).tobytes()
    infinite = good[:20] + struct.pack("<I", wire.checksum(good[:20], body)) + body
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    for frame, code in ((narrow, 3002), (infinite, 1108), (damaged, 1104)):
        answer = HTTP.post(server.url + COMPLETIONS, json=completion(frame=base64.b64encode(frame).decode()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, f"LW-{code}"), answer.text
        assert answer.json()["error"]["param"] == "frame"
    assert (
        HTTP.post(server.url + COMPLETIONS, json=completion(frame=base64.b64encode(good).decode())).status_code == 200
    )


def test_wrong_methods_and_paths(server: Running) -> None:
    assert HTTP.get(server.url + COMPLETIONS).status_code == 405
    assert HTTP.get(server.root + "/../etc/passwd").json()["error"]["code"] == "LW-2134"
    assert HTTP.get(server.root + "/" + "x" * 5000).status_code == 404


def test_keys(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# two keys\nfirst\n\nsecond\n")
    server = start("--api-keys", str(file))
    for key in ("first", "second"):
        assert server.client(key).models.list().data
    for header in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}, {"Authorization": "first"}):
        answer = HTTP.post(server.url + COMPLETIONS, json=completion(), headers=header)
        assert answer.status_code == 401
        assert answer.json()["error"] == {
            "message": "LW-2133 no API key, or an unknown one; send the header Authorization: Bearer KEY",
            "type": "authentication_error",
            "param": None,
            "code": "LW-2133",
        }
    for path in ("/healthz", "/readyz", "/metrics"):
        assert HTTP.get(server.root + path).status_code == 200
