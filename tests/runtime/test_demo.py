"""The demo: its documents, its figures, and the whole run on the toy bundle."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import EnvironmentFault
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime import demo, demo_tables
from latentwire.runtime.demo_tables import holds, verdict
from latentwire.runtime.options import Machine
from latentwire.runtime.rates import alternate

KINDS: dict[str, dict[str, Any]] = {
    "none": {"nll": 4.0, "f1": 0.06, "first_token": 0.14, "context_positions": 0},
    "first": {"nll": 3.5, "f1": 0.1, "first_token": 0.1, "context_positions": 32},
    "latents": {"nll": 3.0, "f1": 0.2, "first_token": 0.25, "context_positions": 31.5},
    "full": {"nll": 2.0, "f1": 0.3, "first_token": 0.3, "context_positions": 160},
}


def read(name: str) -> list[dict[str, Any]]:
    data = resources.files("latentwire.runtime.demo_documents").joinpath(name).read_text("utf-8")
    return [json.loads(line) for line in data.splitlines()]


def test_documents_name_their_source_and_licence(root: Path) -> None:
    documents = read("documents.jsonl")
    assert len({d["custom_id"] for d in documents}) == len(documents) == 12
    readme = (root / "runtime" / "demo_documents" / "README.md").read_text("utf-8")
    for d in documents:
        assert set(d) == {"custom_id", "title", "text", "source", "doc", "licence"}
        assert d["licence"].startswith(("CC BY 4.0", "public domain"))
        assert f"`{d['custom_id']}`" in readme
        assert 400 <= len(d["text"].encode()) <= 1200


def test_every_answer_stands_in_its_document() -> None:
    texts = {d["custom_id"]: d["text"] for d in read("documents.jsonl")}
    questions = read("questions.jsonl")
    assert sorted(q["custom_id"] for q in questions) == sorted(texts)
    for q in questions:
        assert q["answer"] in texts[q["custom_id"]]
        assert q["question"].endswith("?")


def test_rates_alternate() -> None:
    now = [0.0]
    calls: list[str] = []

    def work(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now[0] += seconds.pop(0)

    slow, quick = [4.0, 2.0, 3.0], [1.0, 1.0, 1.0]
    found = alternate(
        {"slow": lambda: work("slow", slow), "quick": lambda: work("quick", quick)}, 10, 3, clock=lambda: now[0]
    )
    assert calls == ["slow", "quick"] * 3
    assert (found["slow"].median, found["slow"].slowest, found["slow"].fastest) == (200, 150, 300)
    assert found["quick"].median == 600


def test_the_verdict_is_honest() -> None:
    good = verdict({"rows": KINDS}, 32)
    assert "By NLL the latents beat no context and the first 32 tokens." in good
    assert "By F1 the latents beat no context and the first 32 tokens." in good
    assert "close 50%" in good
    worse = {**KINDS, "latents": {**KINDS["latents"], "nll": 3.6}}
    assert "By NLL the latents beat no context and do NOT beat the first 32 tokens." in verdict({"rows": worse}, 32)
    worst = {**KINDS, "latents": {**KINDS["latents"], "nll": 4.2, "f1": 0.07}}
    assert "By NLL the latents do NOT beat no context nor the first 32 tokens." in verdict({"rows": worst}, 32)
    assert "By F1 the latents beat no context and do NOT beat the first 32 tokens." in verdict({"rows": worst}, 32)


def test_a_difference_within_its_interval_is_none() -> None:
    apart = {"nll_ci": [-0.9, -0.4], "f1_ci": [-0.029, 0.078]}
    said = verdict({"rows": KINDS, "latents_minus_first": apart}, 32)
    assert "By NLL the latents beat no context and the first 32 tokens." in said
    assert "By F1 the latents beat no context and are level with the first 32 tokens." in said


def test_the_quality_table(capsys: pytest.CaptureFixture[str]) -> None:
    quality = {"latents": 32, "llms": {"x": {"rows": KINDS, "questions": 300}}}
    demo_tables.show_quality(quality, "x")
    said = capsys.readouterr().out
    assert "300 held-out questions" in said
    assert "first 32 tokens" in said
    assert "4.000" in said
    demo_tables.show_quality({}, "x")
    assert "no measured quality" in capsys.readouterr().out


def test_expected_words_are_found_whatever_their_case() -> None:
    assert holds("It was the Google Form.", "Google form")
    assert not holds("1815 was long ago", "1816")


def test_5008_keep_folder_not_empty(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        demo.run("toy", tmp_path, 1, Machine(), True)
    assert caught.value.code == 5008


def test_a_bundle_is_made_once_and_again_when_export_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def call(*words: str) -> str:
        if words[0] == "export":
            made.append(Path(words[words.index("--out") + 1]))
            write_toy_bundle(made[-1])
        return ""

    monkeypatch.setattr(demo, "call", call)
    monkeypatch.setattr(demo, "home", lambda: tmp_path)
    assert demo.ready_bundle("smollm2-135m") == demo.ready_bundle("smollm2-135m") == made[0]
    assert demo.ready_bundle("smollm2-135m", "fp32") != made[0]
    monkeypatch.setattr(demo, "FORM", "another")
    assert demo.ready_bundle("smollm2-135m") not in made[:2]
    assert len(made) == 3


def test_a_step_that_fails_ends_the_demo_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.call("inspect", str(tmp_path))
    assert caught.value.code == 5


def test_the_whole_run(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(quiet=True)
    monkeypatch.setattr(demo, "ready_bundle", lambda llm, precision: toy_bundle)
    documents = [{**d, "text": d["text"][:90]} for d in read("documents.jsonl")[:3]]
    kept = {"documents.jsonl": documents, "questions.jsonl": read("questions.jsonl")[:3]}
    data = {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in kept.items()}
    monkeypatch.setattr(demo, "_data", data.__getitem__)
    assert demo.run("toy", tmp_path / "kept", 1, Machine(), True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["document"] for r in found["rows"]] == [d["title"] for d in documents]
    for row, document in zip(found["rows"], documents, strict=True):
        assert row["text_bytes"] == row["text_positions"] == len(document["text"].encode())
        assert row["latent_positions"] < row["text_positions"]
        assert row["wire_bytes"] > 0
    assert set(found["samples_per_minute"]) == {"from latents", "from full text", "compress"}
    assert found["engine"] == "toy"
    assert not (tmp_path / "kept" / "documents.jsonl").exists()
    lines = [demo_tables.Line(**row) for row in found["rows"]]
    rates = {"from latents": alternate({"a": lambda: None}, 1, 1)["a"]}
    demo_tables.show(lines, rates, found)
    said = capsys.readouterr().out
    for column in ("UTF-8 bytes", "wire bytes", "LLM tokens", "answer from latents", "answer from full text"):
        assert column in said
