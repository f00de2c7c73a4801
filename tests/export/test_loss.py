"""The measured loss of a precision: figures by hand on tiny models, nothing lost where nothing differs."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import InputError
from latentwire.engines.bundle import Bundle, describe_files
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.toy import ToyEngine, write_toy_bundle
from latentwire.export import loss, reference
from latentwire.export.answers import Question, answers
from latentwire.export.drive import prefilled
from latentwire.export.export import Request, export_bundle
from latentwire.export.loss import cosines, demo_questions, measure_loss, read_questions, score
from latentwire.models.folder import ModelFolder

QUESTIONS = [
    Question("The bridge was opened in 1932.", "When was the bridge opened?", ("1932",)),
    Question("Chad lies in Africa.", "Where does Chad lie?", ("Africa", "in Africa")),
    Question("A short text.", "What is it?", ("a text",)),
]


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Callable[[str], ModelFolder],
    make_checkpoint: Callable[..., Path],
) -> Bundle:
    folder, llm = tmp_path_factory.mktemp("loss"), tiny("llama")
    checkpoint = make_checkpoint(folder / "checkpoint", llm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PROMPTS", 2)
        return export_bundle(Request(str(checkpoint), str(llm.path), folder / "bundle", threads=1))


@pytest.fixture(autouse=True)
def _few_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "SENTENCES", 4)


def test_full_text_is_cut_to_the_llm_s_window(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b")
    asked = [replace(q, context=q.context * 9) for q in QUESTIONS]
    for limit in (16, 90, 4096):
        llm = replace(bundle.manifest.llm, max_positions=limit + 40)
        engine = ToyEngine(replace(bundle, manifest=replace(bundle.manifest, llm=llm)))
        most: list[int] = []
        alloc = engine.alloc

        def watched(batch: int, capacity: int, alloc: Any = alloc, most: list[int] = most) -> Any:
            most.append(capacity)
            return alloc(batch, capacity)

        engine.alloc = watched  # type: ignore[method-assign]
        assert len(answers(engine, asked, "full_text", 6)) == 3
        assert max(most) <= limit + 40


def test_score_by_hand(plain: Bundle) -> None:
    """Ragged batches through the cache give what a fresh prefill over each beginning gives."""
    prompts = [[256, 70, 71, 72], [256, 9], [256, 5, 6, 7, 8, 9, 10]]
    with closing(OrtCpuEngine(plain, threads=1)) as engine:
        found = score(engine, prompts)
        by_length = sorted(prompts, key=len)
        for prompt, nll, choices in zip(by_length, found.nll, found.choices, strict=True):
            losses, chosen = [], []
            for end in range(1, len(prompt)):
                logits = prefilled(engine, [prompt[:end]], 0).logits[0].astype(np.float64)
                losses.append(np.log(np.exp(logits).sum()) - logits[prompt[end]])
                chosen.append(int(logits.argmax()))
            assert nll == pytest.approx(np.mean(losses), abs=1e-4)
            assert choices.tolist() == chosen


def test_answers_are_the_runtime_s(plain: Bundle) -> None:
    """The same prompts, stop rules and texts as ``Pipeline.generate`` and ``generate_text``."""
    from latentwire.runtime.options import CompressOptions, GenerateOptions
    from latentwire.runtime.pipeline import Pipeline

    with Pipeline.open(plain.path, threads=1) as pipe:
        texts, asked = [q.context for q in QUESTIONS], [q.text for q in QUESTIONS]
        frames = pipe.compress(texts, CompressOptions(codec="f16"))
        options = GenerateOptions(max_new_tokens=6)
        assert answers(pipe.engine, QUESTIONS, "full_text", 6) == pipe.generate_text(texts, asked, options)
        ours = answers(pipe.engine, QUESTIONS, "latents", 6)
        theirs = pipe.generate(frames, asked, options)
    # Frames round the latents, so a random model may choose otherwise once.
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 2


def test_nothing_is_lost_where_nothing_differs(plain: Bundle) -> None:
    found = measure_loss(plain, plain, QUESTIONS, threads=1)
    assert (found["engine"], found["against"]) == ("ort-cpu", "fp32 on ort-cpu")
    sentences = found["sentences"]
    assert (sentences["count"], sentences["nll_rise"]) == (4, {"mean": 0.0, "ci": [0.0, 0.0]})
    assert sentences["nll"] == sentences["nll_fp32"]
    assert sentences["same_choice"]["mean"] == 1.0
    latents = found["latents"]
    assert latents["least"] == latents["cosine"]["mean"] == 1.0
    assert latents["count"] > len(QUESTIONS)
    for kind in ("latents", "full_text"):
        assert found["questions"][kind]["same_answer"]["mean"] == 1.0
        assert found["questions"][kind]["f1_difference"] == {"mean": 0.0, "ci": [0.0, 0.0]}


def test_cosines_are_of_latents_that_are_there() -> None:
    a = np.array([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]], np.float32)
    b = np.array([[[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(cosines(a, b), [1, 0.5**0.5])


def test_loss_shows(plain: Bundle, tmp_path: Path) -> None:
    """Matrices with noise: more nats, other choices, other answers."""
    from latentwire.export.external import read_layout

    folder = tmp_path / "noisy"
    shutil.copytree(plain.path, folder)
    path = folder / "decoder.safetensors"
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for name, place in read_layout(path).places.items():
        if name.endswith((".gate", ".up", ".down")):
            values = np.frombuffer(data, np.float32, place.length // 4, place.offset)
            noisy = values + rng.standard_normal(len(values)).astype(np.float32) * 0.1
            data[place.offset : place.offset + place.length] = noisy.astype(np.float32).tobytes()
    path.write_bytes(data)
    bundle = Bundle(folder, replace(plain.manifest, files=describe_files(folder)))
    found = measure_loss(bundle, plain, QUESTIONS, threads=1)
    assert abs(found["sentences"]["nll_rise"]["mean"]) > 0.01
    assert found["sentences"]["same_choice"]["mean"] < 0.9
    assert found["questions"]["full_text"]["same_answer"]["mean"] < 1.0


def test_questions_of_the_demo_and_of_a_file(tmp_path: Path) -> None:
    ours = demo_questions()
    assert len(ours) == 12
    assert all(q.context and q.text and q.answers for q in ours)
    path = tmp_path / "q.jsonl.gz"
    rows = [{"context": f"It is {i}.", "question": "What is it?", "answers": [str(i)]} for i in range(10)]
    with gzip.open(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    assert [q.answers for q in read_questions(str(path), 4)] == [("0",), ("3",), ("6",), ("9",)]
    assert len(read_questions(str(path), 99)) == 10


def test_no_questions_are_refused(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        measure_loss(plain, plain, [], threads=1)
    assert caught.value.code == 2104
    with pytest.raises(InputError) as caught:
        read_questions(str(tmp_path / "absent.jsonl"), 3)
    assert caught.value.code == 2104
