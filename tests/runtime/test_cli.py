"""The commands as a person or a program meets them: output, exit codes, one line for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from latentwire.core.console import configure
from latentwire.runtime.cli import app
from latentwire.runtime.pipeline import Pipeline

DOCS = [
    {"custom_id": "bridge", "text": "The bridge was opened in 1932."},
    {"custom_id": "long", "text": "One two three four five. " * 9},
    {"custom_id": "water", "text": "Water boils at 100 degrees."},
]


@pytest.fixture(autouse=True)
def talk() -> None:
    configure(quiet=False, debug=False)


@pytest.fixture
def docs(tmp_path: Path) -> str:
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(d) + "\n" for d in DOCS))
    return str(path)


@pytest.fixture
def out(docs: str, toy_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    assert call("compress", docs, "-o", folder, "-b", toy_bundle, "-q").exit_code == 3
    return folder


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def values(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_compress_prints_totals_and_names_bad_rows(docs: str, toy_bundle: Path, tmp_path: Path) -> None:
    result = call("compress", docs, "-o", tmp_path / "out", "-b", toy_bundle)
    assert result.exit_code == 3
    assert "2 of 3" in result.stdout
    assert "16 in place of 57 tokens" in result.stdout
    assert "4.21 times larger" in result.stdout
    assert f"LW-2006 text longer than the encoder's window; {docs}:2 (id long)" in result.stderr
    steps = [json.loads(line)["step"] for line in result.stderr.splitlines() if line.startswith("{")]
    assert {"read input", "compress"} <= set(steps)


def test_compress_json(docs: str, toy_bundle: Path, tmp_path: Path) -> None:
    words = ("compress", docs, "-o", tmp_path / "out", "-b", toy_bundle, "--on-too-long", "chunk", "--json", "-q")
    result = call(*words)
    (found,) = values(result)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (found["rows"], found["errors"], found["chunks"], found["codec"]) == (3, 0, 6, "i8")


def test_generate_table(out: Path, toy_bundle: Path) -> None:
    result = call("generate", out, "-b", toy_bundle, "--question", "When?")
    assert result.exit_code == 3
    header, _, *lines = result.stdout.splitlines()
    assert header.split() == ["row", "question", "answer"]
    assert [line.split()[0] for line in lines] == ["bridge", "long", "water"]
    assert "(LW-2012 row was not compressed (LW-2006))" in lines[1]


def test_generate_json_equals_the_library(out: Path, toy_bundle: Path) -> None:
    result = call("generate", out, "-b", toy_bundle, "--question", "When?", "--question", "Why?", "--json", "-q")
    found = values(result)
    assert [(f["custom_id"], f["question"]) for f in found] == [
        (name, q) for name in ("bridge", "long", "water") for q in ("When?", "Why?")
    ]
    assert [f.get("error_code") for f in found] == [None, None, "LW-2012", "LW-2012", None, None]
    with Pipeline.open(toy_bundle) as pipe:
        frames = pipe.compress([DOCS[0]["text"]])
        assert [found[0]["answer"], found[1]["answer"]] == pipe.generate(frames * 2, ["When?", "Why?"])
    assert found[0]["context_positions"] == 8


def test_generate_questions_from_a_file(out: Path, toy_bundle: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    rows = ['{"id": "water", "question": "How hot?"}', '{"custom_id": "absent", "question": "?"}', '{"question": 1}']
    questions.write_text("\n".join([*rows, '{"question": "All?"}', "{"]))
    result = call("generate", out, "-b", toy_bundle, "--questions", questions, "--json", "-q")
    assert result.exit_code == 3
    found = {(f["custom_id"], f["question"]): f.get("error_code") for f in values(result)}
    assert found == {
        ("", ""): "LW-2002",
        ("bridge", "All?"): None,
        ("long", "All?"): "LW-2012",
        ("water", "All?"): None,
        ("water", "How hot?"): None,
        ("absent", "?"): "LW-2011",
    }
    messages = [f["error_message"] for f in values(result) if "error_message" in f]
    assert any(f"{questions}:2" in m and "absent" in m for m in messages)
    assert any(f"{questions}:3" in m and m.startswith("LW-2004") for m in messages)


def test_generate_to_a_file(out: Path, toy_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    result = call("generate", out, "-b", toy_bundle, "--question", "When?", "-o", target)
    assert result.stdout == ""
    assert [json.loads(line)["custom_id"] for line in target.read_text().splitlines()] == ["bridge", "long", "water"]


def test_generate_streams(out: Path, toy_bundle: Path) -> None:
    plain = values(call("generate", out, "-b", toy_bundle, "--question", "When?", "--json", "-q"))
    result = call("generate", out, "-b", toy_bundle, "--question", "When?", "--stream", "-q")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [p["answer"] for p in plain if "answer" in p]


def test_generate_draws_with_a_seed(out: Path, toy_bundle: Path) -> None:
    ask = ("generate", out, "-b", toy_bundle, "--question", "When?", "--json", "-q")
    hot = ("--temperature", 3, "--top-k", 40, "--top-p", 0.99)
    assert call(*ask, *hot, "--seed", 1).stdout == call(*ask, *hot, "--seed", 1).stdout
    texts = {tuple(v.get("answer", "") for v in values(call(*ask, *words))) for words in ((), hot, (*hot, "--seed", 2))}
    assert len(texts) == 3
    assert call(*ask, "--temperature", 3, "--top-k", 1).stdout == call(*ask).stdout


def test_generate_from_one_table_and_from_frames(out: Path, toy_bundle: Path, tmp_path: Path) -> None:
    table = next((out / "data").iterdir())
    from_folder = call("generate", out, "-b", toy_bundle, "--question", "When?", "--json", "-q")
    assert call("generate", table, "-b", toy_bundle, "--question", "When?", "--json", "-q").stdout == from_folder.stdout
    frames = tmp_path / "m.lwf"
    with Pipeline.open(toy_bundle) as pipe:
        frames.write_bytes(b"".join(pipe.compress([DOCS[0]["text"], DOCS[2]["text"]])))
    found = values(call("generate", frames, "-b", toy_bundle, "--question", "When?", "--json", "-q"))
    assert [f["answer"] for f in found] == [f["answer"] for f in values(from_folder) if "answer" in f]


def test_the_bundle_may_come_from_the_environment(out: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTWIRE_BUNDLE", str(toy_bundle))
    assert call("generate", out, "--question", "When?", "-q").exit_code == 3


def test_inspect_tells_things_apart(out: Path, toy_bundle: Path, tmp_path: Path) -> None:
    frames = tmp_path / "m.lwf"
    with Pipeline.open(toy_bundle) as pipe:
        frames.write_bytes(pipe.compress(["a text"])[0])
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "meta.json").write_text('{"format": "latentwire-checkpoint", "version": 1, "dtype": "float16"}')
    header = json.dumps({"w": {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]}}).encode()
    (checkpoint / "encoder.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    kinds = {
        frames: "frames",
        next((out / "data").iterdir()): "table of frames",
        out: "job of frames",
        toy_bundle: "bundle",
        checkpoint: "checkpoint",
    }
    for path, kind in kinds.items():
        result = call("inspect", path, "--json")
        assert result.exit_code == 0, path
        (found,) = values(result)
        assert found["kind"] == kind
        readable = call("inspect", path).stdout
        assert kind in readable
        assert len(readable.splitlines()) > 5
    (found,) = values(call("inspect", frames, "--json"))
    assert (found["frames"], found["shown"][0]["codec"], found["bytes"]) == (1, "i8", frames.stat().st_size)
    (found,) = values(call("inspect", checkpoint, "--json"))
    assert found["files"][0]["parameters"] == 12


def failing(words: Sequence[object], code: int, status: int) -> str:
    result = call(*words)
    assert result.exit_code == status
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"LW-{code} ")
    assert result.stdout == ""
    return lines[0]


def test_errors_of_whole_commands(docs: str, out: Path, toy_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    ask = ("--question", "When?", "-q")
    failing(("compress", docs, "-o", out, "-b", toy_bundle, "--codec", "f16"), 2109, 5)
    failing(("compress", "absent.jsonl", "-o", tmp_path / "x", "-b", toy_bundle, "-q"), 2106, 5)
    failing(("compress", docs, "-o", tmp_path / "x", "-b", tmp_path, "-q"), 4001, 5)
    failing(("compress", docs, "-o", tmp_path / "x", "-b", toy_bundle, "--latents", 65, "-q"), 2111, 5)
    assert not (tmp_path / "x").exists()
    failing(("generate", tmp_path, "-b", toy_bundle, *ask), 2108, 5)
    failing(("generate", docs, "-b", toy_bundle, *ask), 1101, 5)
    failing(("inspect", docs), 2110, 5)
    failing(("inspect", tmp_path / "absent"), 2106, 5)
    other = values(call("generate", out, "-b", other_bundle, *ask, "--json"))
    assert [f["error_code"] for f in other] == ["LW-3101", "LW-2012", "LW-3101"]


def test_a_changed_bundle_is_refused(docs: str, toy_bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(toy_bundle, copy)
    raw = bytearray((copy / "encoder_tokenizer.json").read_bytes())
    raw[100] ^= 1
    (copy / "encoder_tokenizer.json").write_bytes(bytes(raw))
    line = failing(("compress", docs, "-o", tmp_path / "out", "-b", copy, "-q"), 4007, 5)
    assert "encoder_tokenizer.json" in line
    (copy / "encoder_tokenizer.json").unlink()
    failing(("inspect", copy), 4008, 5)


def test_no_question_is_a_usage_error(out: Path, toy_bundle: Path) -> None:
    result = call("generate", out, "-b", toy_bundle)
    assert result.exit_code == 2
    assert "--question" in result.stderr


def test_tracebacks_only_with_debug(docs: str, out: Path, toy_bundle: Path) -> None:
    words = [sys.executable, "-m", "latentwire.cli", "compress", docs, "-o", str(out), "-b", str(toy_bundle)]
    words += ["--codec", "f16", "-q"]
    plain = subprocess.run(words, capture_output=True, text=True, check=False)
    assert plain.returncode == 5
    assert "Traceback" not in plain.stderr
    assert plain.stderr.startswith("LW-2109 ")
    shown = subprocess.run([*words, "--debug"], capture_output=True, text=True, check=False)
    assert shown.returncode == 5
    assert "Traceback" in shown.stderr
