"""The second family: norms stored with 1 added, two rotary bases, a tokenizer whose merges are not in the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from latentwire.core.console import configure
from latentwire.models import catalogue, store
from latentwire.models.convert import convert
from latentwire.models.folder import ModelFolder

FINGERPRINT = "ab01b6afc551b2b2731680d3be737f67544743492e0b9e47520259fa8953807a"
"""Frozen; compared once with transformers' own loader: every weight, every merge, 10,360 texts."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    configure(quiet=True)


@pytest.fixture
def converted(tiny_gemma: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert(tiny_gemma, folder)
    return folder


@pytest.fixture(scope="session")
def gemma() -> ModelFolder:
    """The real model, only where its user has agreed to its terms and added it."""
    entry = catalogue.find("gemma-3-270m")
    if store.status(entry).state != "ready":
        pytest.skip("gemma-3-270m has terms of use; add it yourself to test it: latentwire models add gemma-3-270m")
    return store.resolve(entry.name)


def test_weights_are_those_of_transformers(
    tiny_gemma: Path, converted: Path, assert_same_as_transformers: Callable[[Path, Path], None]
) -> None:
    assert_same_as_transformers(tiny_gemma, converted)


def test_every_sixth_layer_sees_everything(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert [kind[:4] for kind in config["layer_types"]] == ["slid"] * 5 + ["full", "slid"]
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 1_000_000.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000.0


def texts() -> list[str]:
    rng = random.Random(0)
    bits = ["he", "l", "lo", " ", "  ", "   ", "\n", "\n\n\n", "the", "\u0301", "ana", "nan", "b", "é", "<b>", "\t",
            "<eos>", "7", "🙂", "<unused0>", "re", "x"]  # fmt: skip
    return ["".join(rng.choices(bits, k=rng.randrange(1, 40))) for _ in range(3000)]


def test_same_ids_as_transformers(tiny_gemma: Path, converted: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tiny_gemma.parent, gguf_file=tiny_gemma.name)
    ours = Tokenizer.from_file(str(converted / "tokenizer.json"))
    for special in (False, True):
        expected = theirs(texts(), add_special_tokens=special)["input_ids"]
        assert [e.ids for e in ours.encode_batch(texts(), add_special_tokens=special)] == expected
    opened: Any = transformers.AutoTokenizer.from_pretrained(converted)
    assert opened(texts())["input_ids"] == theirs(texts())["input_ids"]
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id, opened.unk_token_id) == (2, 1, 0, 3)


def test_decode_gives_the_text_back(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_real_model_is_frozen(gemma: ModelFolder) -> None:
    assert gemma.fingerprint == FINGERPRINT
    assert gemma.family == "gemma3_text"
    assert "Gemma" in (gemma.path / "TERMS.html").read_text("utf-8")
    record = json.loads((gemma.path / "latentwire.json").read_text())
    assert record["terms"]["accepted"] is not None


@pytest.mark.slow
def test_real_model_answers(gemma: ModelFolder) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(gemma.path)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(gemma.path)
    prompt = tokenizer("Question: Who wrote Hamlet?\nAnswer:", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
    assert "Shakespeare" in answer
