"""Latent prompts on the toy engine: built, kept, answered, and refused by what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentwire.core.errors import InputError, ModelError
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime.options import GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts import answer, build, file
from latentwire.runtime.prompts.prompt import LatentPrompt
from latentwire.runtime.prompts.target import Target, target_of

QUESTIONS = ["When was the bridge opened?", "Is it short?"]
CONTEXTS = ["The bridge was opened in 1932.", "Short."]


@pytest.fixture
def prompts(pipe: Pipeline) -> list[LatentPrompt]:
    frames = pipe.compress(CONTEXTS)
    return [build.build(pipe, f, q) for f, q in zip(frames, QUESTIONS, strict=True)]


@pytest.fixture
def target(pipe: Pipeline) -> Target:
    return target_of(pipe.engine)


def refused(code: int, call: object, *args: object) -> None:
    with pytest.raises(InputError) as caught:
        call(*args)  # type: ignore[operator]
    assert caught.value.code == code


def test_answers_are_the_pipeline_s(pipe: Pipeline, prompts: list[LatentPrompt]) -> None:
    options = GenerateOptions(max_new_tokens=12)
    eos = pipe.bundle.manifest.llm.eos
    together = answer.answer(pipe.engine, prompts, 12)
    assert together == [answer.answer(pipe.engine, [p], 12)[0] for p in prompts]
    texts = [pipe.tokenizer.decode([i for i in ids if i not in eos]).partition("\n")[0].strip() for ids in together]
    assert texts == pipe.generate(pipe.compress(CONTEXTS), QUESTIONS, options)


def test_a_text_context_is_tokens_but_for_the_task_rows(pipe: Pipeline) -> None:
    prompt = build.build(pipe, CONTEXTS[0], QUESTIONS[0])
    assert len(prompt.latents) == pipe.bundle.manifest.adapter.task_tokens
    assert prompt.is_token.sum() == len(prompt) - len(prompt.latents)


def test_segments_in_any_order(target: Target, prompts: list[LatentPrompt]) -> None:
    rows = prompts[0].latents[:2]
    made = LatentPrompt.of([rows, [5, 6], rows[:1], [7]], target)
    assert made.token_ids.tolist() == [0, 0, 5, 6, 0, 7]
    assert made.is_token.tolist() == [False, False, True, True, False, True]
    np.testing.assert_array_equal(made.latents, rows[[0, 1, 0]])


def test_a_file_keeps_it(tmp_path: Path, target: Target, prompts: list[LatentPrompt]) -> None:
    file.save(prompts[0], tmp_path / "p.safetensors")
    found = file.load(tmp_path / "p.safetensors", target)
    for name in ("token_ids", "is_token", "latents"):
        np.testing.assert_array_equal(getattr(found, name), getattr(prompts[0], name))


def test_a_damaged_file_is_refused(tmp_path: Path, target: Target, prompts: list[LatentPrompt]) -> None:
    path = tmp_path / "p.safetensors"
    refused(2106, file.load, path, target)
    file.save(prompts[0], path)
    data = path.read_bytes()
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        refused(2140, file.load, path, target)
    path.write_bytes(data)
    refused(2146, file.load, path, replace(target, fingerprint="0" * 64))
    tensors = load_file(path)
    save_file(tensors, path, {"format": "another"})
    refused(2140, file.load, path, target)


def test_a_file_with_another_dtype_is_refused(tmp_path: Path, target: Target, prompts: list[LatentPrompt]) -> None:
    path = tmp_path / "p.safetensors"
    file.save(prompts[0], path)
    data = path.read_bytes()
    assert data.count(b'"dtype":"I64"') == 1
    path.write_bytes(data.replace(b'"dtype":"I64"', b'"dtype":"U64"'))
    refused(2143, file.load, path, target)


def test_what_does_not_fit_the_llm_is_refused(target: Target, prompts: list[LatentPrompt]) -> None:
    rows = prompts[0].latents
    refused(2140, LatentPrompt.of, [], target)
    refused(2140, LatentPrompt.of, [[target.vocab_size]], target)
    refused(2140, LatentPrompt.of, [[-1]], target)
    refused(2141, LatentPrompt.of, [[1] * (target.max_positions + 1)], target)
    refused(2143, lambda: replace(target, dtype="int8"))  # type: ignore[arg-type]
    refused(2144, LatentPrompt.of, [rows[:, :-1]], target)
    refused(2144, LatentPrompt.of, [rows.astype(np.float64)], target)
    refused(2144, LatentPrompt, prompts[0].token_ids, prompts[0].is_token, rows[1:], target)
    for bad in (np.nan, np.inf):
        broken = rows.copy()
        broken[0, 0] = bad
        refused(2145, LatentPrompt.of, [broken], target)
    refused(2147, LatentPrompt.of, [rows * 1000], target)
    refused(2147, LatentPrompt.of, [rows / 1000], target)


def test_a_prompt_for_another_llm_is_refused(pipe: Pipeline, prompts: list[LatentPrompt]) -> None:
    other = replace(prompts[0].target, fingerprint="0" * 64)
    refused(2146, answer.answer, pipe.engine, [replace(prompts[0], target=other)])


def test_no_room_for_the_answer(pipe: Pipeline, prompts: list[LatentPrompt]) -> None:
    refused(2141, answer.answer, pipe.engine, prompts, prompts[0].target.max_positions)
    refused(2111, answer.answer, pipe.engine, [])


def test_latents_that_reach_the_cache_make_no_prompt(tmp_path: Path) -> None:
    with Pipeline.open(write_toy_bundle(tmp_path / "b", features={"deep_prefix": {}}).path) as deep:
        frames = deep.compress(CONTEXTS)
        with pytest.raises(ModelError) as caught:
            build.build(deep, frames[0], QUESTIONS[0])
    assert caught.value.code == 3225
