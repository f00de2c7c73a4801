"""Environments of peers, with pip and the model builder replaced: what is recorded, and what is found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentwire.benchmarks import launches, peer_setup
from latentwire.core.errors import InputError


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have run; the store is empty but for a model folder."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setenv("LATENTWIRE_HOME", str(tmp_path))
    monkeypatch.setattr(peer_setup, "resolve", lambda llm: SimpleNamespace(path=tmp_path / "model"))
    monkeypatch.setattr(peer_setup, "_run", lambda *words, cwd=None: commands.append(words))
    return commands


def test_a_peer_is_made_once_and_found_again(ran: list[tuple[str, ...]]) -> None:
    assert peer_setup.find("transformers", "smollm2-135m").reason == "not set up: run scripts/bench-peers"
    assert peer_setup.setup("transformers", "smollm2-135m") is None
    assert any("torch==2.13.0" in words for words in ran)
    count = len(ran)
    assert peer_setup.setup("transformers", "smollm2-135m") is None
    assert len(ran) == count  # nothing runs the second time
    found = launches.peer_launches(["transformers", "transformers fp32 compiled"], "smollm2-135m", 2)
    assert [x.name for x in found] == ["transformers fp32", "transformers bf16", "transformers fp32 compiled"]
    assert all(x.reason is None and x.options["threads"] == 2 for x in found)
    assert found[0].weights == "dequantised Q4_1"
    assert "run scripts/bench-peers --llm other" in str(peer_setup.find("transformers", "other").reason)


def test_optimum_exports_with_its_own_program(ran: list[tuple[str, ...]], tmp_path: Path) -> None:
    assert peer_setup.setup("optimum-onnx", "smollm2-135m") is None
    out = tmp_path / "bench" / "optimum-onnx" / "models" / "smollm2-135m"
    assert ran[-1][1:] == ("-m", "peers.optimum_peer", str(tmp_path / "model"), str(out))
    (launch,) = launches.peer_launches(["optimum-onnx"], "smollm2-135m", 2)
    assert launch.reason is None
    assert launch.options["folder"] == str(out)


def test_why_a_peer_cannot_be_installed_is_kept(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*words: str, cwd: Path | None = None) -> None:
        raise peer_setup.Failed("ERROR: No matching distribution found for xllamacpp")

    monkeypatch.setattr(peer_setup, "_run", failing)
    said = peer_setup.setup("llama.cpp", "smollm2-135m")
    assert said == "ERROR: No matching distribution found for xllamacpp"
    (launch,) = launches.peer_launches(["llama.cpp"], "smollm2-135m", 2)
    assert launch.reason == said
    record = tmp_path / "bench" / "llama.cpp" / "peer.json"
    kept = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**kept, "pins": ["another==1"], "reason": None}), encoding="utf-8")
    assert "other versions" in str(peer_setup.find("llama.cpp", "smollm2-135m").reason)


def test_unknown_peer() -> None:
    with pytest.raises(InputError) as caught:
        peer_setup.find("exllama", "smollm2-135m")
    assert caught.value.code == 2111


def test_every_peer_has_its_program(root: Path) -> None:
    for peer in peer_setup.PEERS.values():
        assert (root / "benchmarks" / "peers" / f"{peer.module}.py").is_file()


def test_a_step_that_fails_says_its_last_line(real_run: Callable[..., None]) -> None:
    import sys

    with pytest.raises(peer_setup.Failed, match=r"^the reason$"):
        real_run(sys.executable, "-c", "print('the reason'); raise SystemExit(3)")


@pytest.fixture
def real_run() -> Callable[..., None]:
    return peer_setup._run
