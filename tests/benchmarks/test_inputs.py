from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from latentwire.benchmarks.inputs import load_inputs, resized
from latentwire.core.errors import InputError


def test_the_shipped_texts_are_about_a_kilobyte_and_named_by_their_hash(root: Path) -> None:
    inputs = load_inputs()
    assert inputs.sha256 == hashlib.sha256((root / "benchmarks" / "texts.jsonl").read_bytes()).hexdigest()
    assert all(850 <= len(s.text.encode()) <= 1200 for s in inputs.samples)
    assert all(s.question and s.answers for s in inputs.samples)
    texts = [s.text for s in inputs.samples]
    assert len(set(texts[: len(set(texts))])) == len(set(texts)) >= 60  # every text once before any comes again
    facts = inputs.facts(200)
    assert facts["samples"] == 200
    assert facts["distinct_texts"] == len(set(texts))
    assert 850 <= facts["text_bytes"]["p50"] <= facts["text_bytes"]["p95"] <= facts["text_bytes"]["max"] <= 1200


def test_a_list_starts_again_where_it_ends() -> None:
    inputs = load_inputs()
    found = inputs.take(len(inputs.samples) + 1)
    assert found[-1] == found[0]


@pytest.mark.parametrize("size", [256, 1024, 5000])
def test_resized_texts_have_about_the_size_and_keep_their_questions(size: int) -> None:
    samples = load_inputs().take(5)
    found = resized(samples, size)
    assert [s.question for s in found] == [s.question for s in samples]
    assert all(size - 40 <= len(s.text.encode()) <= size for s in found)
    assert len({s.text for s in found}) == 5


@pytest.mark.parametrize(
    ("line", "code"), [("", 2104), ("{", 2111), ('{"text": "a"}', 2111), ('{"text": "a", "questions": [1]}', 2111)]
)
def test_other_files_are_refused(tmp_path: Path, line: str, code: int) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_inputs(path)
    assert caught.value.code == code


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_inputs(tmp_path / "none.jsonl")
    assert caught.value.code == 2106
