"""Our payloads in the code that shall read them: vLLM's and SGLang's own request parsing, without a GPU.

Their wheels are fetched once, without what they depend on, and only Python files are unpacked; the few small packages
that their parsing imports come beside them. What was read and is run:

vLLM 0.33.0: ``entrypoints/openai/completion/protocol.py`` (``CompletionRequest``), ``renderers/online_renderer.py``
(``preprocess_completion``: every prompt that is not null counts), ``renderers/embed_utils.py``
(``safe_load_prompt_embeds``), ``renderers/inputs/preprocess.py`` (``parse_dec_only_prompt``) and ``renderers/base.py``
(``_process_embeds``). SGLang 0.5.23: ``srt/managers/io_struct.py`` (``GenerateReqInput``).
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.core.errors import InputError
from latentwire.core.locks import exclusive
from latentwire.models.store import home
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts import build, emit, parse
from latentwire.runtime.prompts.prompt import LatentPrompt
from latentwire.runtime.prompts.target import target_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A wheel, what of it is unpacked beside Python files, what its parsing needs, and what it only imports."""

    pin: str
    script: str
    folders: tuple[str, ...]
    beside: tuple[str, ...]
    empty: tuple[str, ...]


VLLM = Peer(
    "vllm==0.33.0",
    "vllm_parser.py",
    (),
    (
        "cbor2==6.3.0",
        "pyzmq==27.3.0",
        "aiohttp==3.14.5",
        "multidict==7.2.1",
        "yarl==1.25.1",
        "propcache==0.5.4",
        "aiohappyeyeballs==2.7.1",
        "aiosignal==1.4.0",
        "frozenlist==1.8.0",
        "openai-harmony==0.0.8",
        "pybase64==1.5.1",
        "cachetools==8.0.1",
        "msgspec==0.22.0",
        "cloudpickle==3.1.2",
        "partial-json-parser==0.2.1.1.post7",
        "uvloop==0.23.0",
    ),
    ("xgrammar",),
)
SGLANG = Peer(
    "sglang==0.5.23",
    "sglang_parser.py",
    ("sglang/kernels/",),
    (*VLLM.beside, "orjson==3.13.0", "traitlets==5.16.1"),
    ("triton", "IPython", "torchvision", "tvm_ffi", "sentencepiece", "compressed_tensors", "partial_json_parser"),
)


def installed(peer: Peer) -> Path:
    """A folder for ``PYTHONPATH``; made once under the store."""
    target = home() / "tests" / peer.pin.replace("==", "-")
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.with_suffix(".lock")):
        done = target / "complete"
        if done.is_file() and done.read_text() == repr(peer):
            return target
        wheels = target / "wheel"
        pip("download", "--no-deps", "--dest", str(wheels), peer.pin)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith((".py", "METADATA")) or n.startswith(peer.folders)]
            archive.extractall(target, names)
        wheel.unlink()
        pip("install", "--no-deps", "--upgrade", "--target", str(target), *peer.beside)
        done.write_text(repr(peer))
    return target


def pip(*words: str) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"pip {words[0]} failed here: {run.stderr.strip().splitlines()[-1][:200]}")


def said(peer: Peer, asked: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What the peer's parser makes of it."""
    path = os.pathsep.join([str(installed(peer)), *filter(None, [os.environ.get("PYTHONPATH")])])
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    files = [str(tmp_path / "asked.json"), str(tmp_path / "said.json")]
    command = [sys.executable, str(HERE / "empty.py"), ",".join(peer.empty), str(HERE / peer.script), *files]
    env = os.environ | {"PYTHONPATH": path, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    answer: dict[str, Any] = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    return answer


def torch_body(value: object) -> dict[str, Any]:
    out = io.BytesIO()
    torch.save(value, out)
    return {"model": "m", "prompt_embeds": base64.b64encode(out.getvalue()).decode()}


@pytest.fixture
def prompt(pipe: Pipeline) -> LatentPrompt:
    return build.build(pipe, pipe.compress(["The bridge was opened in 1932."])[0], "When?")


@pytest.mark.slow
def test_vllm_reads_what_is_sent(pipe: Pipeline, prompt: LatentPrompt, tmp_path: Path) -> None:
    rows = emit.embeddings(pipe.engine, prompt)
    hidden = rows.shape[1]
    halves = [build.build(pipe, pipe.compress(["A"])[0], "When?", dtype) for dtype in ("float16", "bfloat16")]
    good = {p.target.dtype: emit.vllm_request(p, rows, "m", max_tokens=5) for p in (prompt, *halves)}
    bad = {
        "hidden size": torch_body(torch.zeros(3, hidden + 1)),
        "integers": torch_body(torch.zeros(3, hidden, dtype=torch.int64)),
        "two matrices": torch_body([torch.zeros(3, hidden)] * 2),
        "sparse, out of range": torch_body(broken_sparse(hidden)),
        "no tensor": {"model": "m", "prompt_embeds": base64.b64encode(b"junk").decode()},
        "no base64": {"model": "m", "prompt_embeds": "*"},
    }
    mixed = emit.vllm(prompt)
    whole = emit.vllm(prompt, rows)
    asked: dict[str, Any] = {
        "hidden": hidden,
        "http": {**good, **bad, "empty prompt beside": good["float32"] | {"prompt": ""}},
        "python": {
            "mixed": mixed | {"prompt_embeds": mixed["prompt_embeds"].tolist()},
            "whole": {"prompt_embeds": whole["prompt_embeds"].tolist()},
            "neither": {"prompt_is_token_ids": [True]},
        },
    }
    found = said(VLLM, asked, tmp_path)
    for dtype in good:
        answer = found["http"][dtype]
        assert (answer["prompts"], answer["type"], answer["max_tokens"], answer["extra"]) == (1, "embeds", 5, [])
        want = torch.from_numpy(rows).to(getattr(torch, dtype)).float()
        np.testing.assert_array_equal(np.array(answer["rows"], np.float32), want.numpy())
    # Why there is no ``prompt`` in the payload.
    assert found["http"]["empty prompt beside"]["prompts"] == 2
    for name, body in bad.items():
        print(name, found["http"][name])
        assert "refused" in found["http"][name], name
        with pytest.raises(InputError):  # ours takes nothing that theirs refuses
            parse.from_vllm(body, target_of(pipe.engine))
    mixed_answer = found["python"]["mixed"]
    assert mixed_answer["type"] == "embeds"
    assert mixed_answer["ids"] == prompt.token_ids.tolist()
    assert mixed_answer["mask"] == prompt.is_token.tolist()
    # v1/engine/input_processor.py asks for one mark a row.
    assert mixed_answer["length"] == len(prompt) == len(mixed_answer["mask"])
    assert found["python"]["whole"] == {"type": "embeds", "ids": None, "mask": None, "length": len(prompt)}
    assert "must contain" in found["python"]["neither"]["refused"]


def broken_sparse(hidden: int) -> torch.Tensor:
    """Indices that lie outside (CVE-2025-62164)."""
    index = torch.tensor([[0], [hidden * 1000]])
    return torch.sparse_coo_tensor(index, torch.ones(1), (3, hidden), check_invariants=False)


@pytest.mark.slow
def test_sglang_reads_what_is_sent(pipe: Pipeline, prompt: LatentPrompt, tmp_path: Path) -> None:
    rows = emit.embeddings(pipe.engine, prompt)
    other = emit.embeddings(pipe.engine, build.build(pipe, "A text.", "Where?"))
    one = emit.sglang_request([rows], max_new_tokens=5, temperature=0)
    two = emit.sglang_request([rows, other], max_new_tokens=5)
    bad = {
        "words": one | {"input_embeds": [["a", "b"]]},
        "one row": one | {"input_embeds": [1.0, 2.0]},
        "nothing": {"sampling_params": {}},
    }
    found = said(SGLANG, {"one": one, "two": two, **bad}, tmp_path)
    assert (found["one"]["batch"], found["one"]["single"]) == (1, True)
    np.testing.assert_array_equal(np.array(found["one"]["rows"][0], np.float32), rows)
    assert found["one"]["sampling"] == [{"max_new_tokens": 5, "temperature": 0}]
    assert (found["two"]["batch"], found["two"]["single"]) == (2, False)
    for ours, theirs in zip((rows, other), found["two"]["rows"], strict=True):
        np.testing.assert_array_equal(np.array(theirs, np.float32), ours)
    for name, body in bad.items():
        print(name, found[name])
        assert "refused" in found[name], name
        with pytest.raises(InputError):
            parse.from_sglang(body, target_of(pipe.engine))
