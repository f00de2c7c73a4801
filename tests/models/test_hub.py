"""Models from the hub, against a small server that speaks its protocol, and without any network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from latentwire.models.convert import convert

CODE = """
import sys
from latentwire.core.console import run_cli
from latentwire.models.store import resolve
def show():
    model = resolve(sys.argv[1])
    print(model.name, model.family, *sorted(path.name for path in model.path.iterdir()))
run_cli(show)
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub: one model, one gated, none else."""

    files: ClassVar[dict[str, bytes]] = {}

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self._reply(200, json.dumps(listed).encode())
        elif path.startswith("/api/models/org/tiny"):
            listed = [{"rfilename": name} for name in self.files]
            self._reply(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": listed}).encode())
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            content = self.files[path.rsplit("/", 1)[1]]
            etag = hashlib.sha256(content).hexdigest()
            self._reply(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        elif "/org/gated" in path:
            self._reply(403, X_Error_Code="GatedRepo", X_Error_Message="ask for access")
        else:
            self._reply(404, X_Error_Code="RepoNotFound", X_Error_Message="not found")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def hub(tiny_gguf: Path, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    convert(tiny_gguf, folder)
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files["pytorch_model.bin"] = b"a pickle"
    Hub.files["modeling_tiny.py"] = b"print('never fetched')"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def resolve(name: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", CODE, name], capture_output=True, text=True, timeout=60, env=clean, check=False
    )


def test_only_data_is_fetched(hub: str, tmp_path: Path) -> None:
    done = resolve("hf:org/tiny", tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("hf:org/tiny llama config.json model.safetensors tokenizer.json tokenizer_config.json\n")
    again = resolve("hf:org/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


@pytest.mark.parametrize(
    ("name", "start"),
    [("org/none", "LW-3201 no such model"), ("org/gated", "LW-3205 model asks"), ("a/b/c", "LW-3201")],
)
def test_refusals(hub: str, tmp_path: Path, name: str, start: str) -> None:
    done = resolve(f"hf:{name}", tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith(start)
    assert name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_network(tmp_path: Path, environment: dict[str, str]) -> None:
    done = resolve("hf:org/tiny", tmp_path, **environment)
    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1].startswith("LW-5010 cannot reach the hub; hf:org/tiny; ")
    assert "Traceback" not in done.stderr
