"""Answers of bundles whose latents also go into the cache: in any batch the same, and within the room there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import RowError
from latentwire.engines.toy import ToyEngine, write_toy_bundle
from latentwire.runtime.generate import Generator
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline, raised

TEXTS = ["The bridge was opened in 1932.", "Goats.", "A library in Perth lends violins to members for six weeks."]
ASKED = ["When?", "What is told about the animals of the island, and who feeds them?", "Where?"]
SHORT = GenerateOptions(max_new_tokens=6)


@pytest.fixture(params=[("deep_prefix", {"groups": 3}), ("coprocessor", {})], ids=["before", "onto"])
def features(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    kind, facts = request.param
    return {kind: facts}


@pytest.fixture
def pipe(features: dict[str, dict[str, Any]], tmp_path: Path) -> Pipeline:
    return Pipeline(ToyEngine(write_toy_bundle(tmp_path / "b", features=features)))


def test_a_batch_answers_as_each_alone_and_text_as_ever(pipe: Pipeline, tmp_path: Path) -> None:
    frames = [pipe.compress([t], CompressOptions(latents=n))[0] for t, n in zip(TEXTS, (7, 2, 5), strict=True)]
    contexts: list[bytes | str] = [*frames, TEXTS[0]]
    asked = [*ASKED, "When?"]
    together = [found.text for found in raised(pipe.answers(contexts, asked, SHORT))]
    alone = [raised(pipe.answers([c], [q], SHORT))[0].text for c, q in zip(contexts, asked, strict=True)]
    assert together == alone
    assert ["".join(pipe.stream(c, q, SHORT)) for c, q in zip(contexts, asked, strict=True)] == alone
    plain = Pipeline(ToyEngine(write_toy_bundle(tmp_path / "plain")))
    without = [found.text for found in raised(plain.answers(contexts, asked, SHORT))]
    assert without[3] == alone[3]
    assert without[:3] != alone[:3]


def test_positions_count_the_slots(pipe: Pipeline, features: dict[str, dict[str, Any]]) -> None:
    (frame,) = pipe.compress(TEXTS[:1], CompressOptions(latents=7))
    latents, text = raised(pipe.answers([frame, TEXTS[0]], ["When?", "When?"], SHORT))
    added = 3 if "deep_prefix" in features else 0
    assert latents.context_positions == 7 + added
    assert text.context_positions == len(TEXTS[0])
    assert text.prompt_positions - latents.prompt_positions == len(TEXTS[0]) - 7 - added


def test_a_fixed_cache_is_never_overrun(pipe: Pipeline) -> None:
    """Beginnings and rests are padded apart: rows that fit alone may not fit together."""
    few = CompressOptions(latents=20), CompressOptions(latents=1)
    frames = [pipe.compress([TEXTS[2]], options)[0] for options in few]
    asked = ["When?", "W" * 40]
    apart = [raised(pipe.answers([c], [q], SHORT))[0] for c, q in zip(frames, asked, strict=True)]
    room = max(found.prompt_positions for found in apart) + SHORT.max_new_tokens
    _fix(pipe, room)
    assert [found.text for found in raised(pipe.answers(frames, asked, SHORT))] == [found.text for found in apart]
    _fix(pipe, room - 1)
    with pytest.raises(RowError) as caught:
        raised(pipe.answers(frames, asked, SHORT))
    assert caught.value.code == 2006


def _fix(pipe: Pipeline, capacity: int) -> None:
    bundle = pipe.engine.bundle
    pipe.engine.bundle = replace(bundle, manifest=replace(bundle.manifest, capacity=capacity))
    pipe.__dict__["_generator"] = Generator(pipe.engine, pipe.tokenizer)
