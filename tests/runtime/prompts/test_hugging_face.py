"""The same prompt, the same answer: Hugging Face ``generate`` and our fp32 engine, token for token."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts import answer, build, emit

NEW_TOKENS = 12


def read(name: str) -> list[dict[str, str]]:
    data = resources.files("latentwire.runtime.demo_documents").joinpath(name).read_text("utf-8")
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("count", [8, pytest.param(48, marks=pytest.mark.slow)])
def test_answers_are_hugging_face_s(smollm2: Path, smollm2_bundle: Path, count: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, local_files_only=True).eval()
    documents = {row["custom_id"]: row["text"] for row in read("documents.jsonl")}
    asked = read("questions.jsonl")
    pairs = [(documents[q["custom_id"]], q["question"]) for q in asked]
    pairs += [(text, "What is this about?") for text in documents.values()]
    pairs += [(text, "Where did it happen?") for text in documents.values()]
    pairs += [(text, "When did it happen?") for text in documents.values()]
    assert len(pairs) >= count
    with Pipeline.open(smollm2_bundle) as pipe:
        frames = pipe.compress([text for text, _ in pairs[:count]])
        prompts = [build.build(pipe, f, q) for f, (_, q) in zip(frames, pairs, strict=False)]
        eos = pipe.bundle.manifest.llm.eos
        ours, theirs = [], []
        for start in range(0, count, 8):
            part = prompts[start : start + 8]
            ours += answer.answer(pipe.engine, part, NEW_TOKENS)
            given = {name: torch.from_numpy(a) for name, a in emit.hugging_face(pipe.engine, part).items()}
            with torch.inference_mode():
                made = model.generate(
                    **given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=list(eos), pad_token_id=eos[0]
                ).tolist()
            theirs += [row[: next((i + 1 for i, t in enumerate(row) if t in eos), len(row))] for row in made]
    assert ours == theirs
    assert len({tuple(row) for row in ours}) > count // 4
