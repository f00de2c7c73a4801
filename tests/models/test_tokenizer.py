"""The embedded tokenizer gives, id for id, what transformers' own GGUF loader gives.

One difference is ours on purpose. The file names the pre-tokenizer ``smollm``: each digit stands alone before
words are cut. transformers ignores that name, so its ids differ where two or more white-space characters stand
before a digit, or a space before a digit that is not one of 0 to 9. With that split added, nothing may differ; without
it, nothing may differ on text that has no such place.
"""

from __future__ import annotations

import os
import random
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

DIGITS_FIRST = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
DATA_VARIABLE = "LATENTWIRE_DATA"


def every_character() -> Iterator[str]:
    """All code points up to the end of the supplementary multilingual plane, alone, spaced and inside words."""
    for start in range(0, 0x20000, 64):
        block = "".join(chr(c) for c in range(start, start + 64) if not 0xD800 <= c < 0xE000)
        if any(unicodedata.category(c) != "Cn" for c in block):
            yield from (block, " ".join(block), "a".join(block))


def mixtures(count: int) -> Iterator[str]:
    """Random strings of letters, digits, white space, marks, several scripts and emoji."""
    rng = random.Random(0)
    ranges = [(32, 127), (32, 127), (48, 58), (9, 14), (32, 33), (32, 33), (0xA0, 0x250), (0x300, 0x370),
              (0x370, 0x600), (0x900, 0xE00), (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF),
              (0x1F1E6, 0x1F200), (0x1F300, 0x1FA00)]  # fmt: skip
    for _ in range(count):
        yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 120)))


def source_code() -> Iterator[str]:
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:60]:
        yield path.read_text("utf-8", "replace")


EDGES = (
    "", " ", "  ", "\n", "\n\n", "\t\t x", " leading", "trailing ", "a  b   c    d", "don't we'll I'M it's'", "1",
    "2024", " 3.14159", "a1b2c3", "  5", "\n\n1. one\n2. two", "x\r\ny", "\u00a0\u2003\u200b|\ufeff", "½ Ⅷ ٣ 一",
    "e\u0301 vs é", "👩‍👩‍👧‍👦🇩🇪🏳️‍🌈", "مرحبا بالعالم", "שלום", "こんにちは世界", "你好，世界", "Привет, мир!",
    "<|im_start|>user\nhi<|im_end|>", "<|im_start", "<repo_name>x<file_sep>", "def f(x):\n    return x  # 12\n",
    "https://a.b/c?d=e&f=%20#g", "\x00\x01\x7f", "a" * 3000, "\U0010ffff", "ÀÉÎÕÜ ﬁ ﬀ ſ ß İ ı",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def theirs(smollm2_gguf: Path) -> Tokenizer:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded: Any = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    backend: Tokenizer = loaded.backend_tokenizer
    return backend


@pytest.fixture(scope="module")
def theirs_with_digits(theirs: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(theirs.to_str())
    copy.pre_tokenizer = DIGITS_FIRST
    return copy


def differing(ours: Tokenizer, theirs: Tokenizer, texts: list[str]) -> list[str]:
    pairs = zip(
        texts,
        ours.encode_batch(texts, add_special_tokens=False),
        theirs.encode_batch(texts, add_special_tokens=False),
        strict=True,
    )
    return [text[:80] for text, a, b in pairs if a.ids != b.ids]


@pytest.mark.parametrize("texts", [list(EDGES), list(every_character()), list(mixtures(4000)), list(source_code())],
                         ids=["edges", "characters", "mixtures", "code"])  # fmt: skip
def test_same_ids_as_transformers(ours: Tokenizer, theirs_with_digits: Tokenizer, texts: list[str]) -> None:
    assert differing(ours, theirs_with_digits, texts) == []


def test_same_ids_as_transformers_unchanged(ours: Tokenizer, theirs: Tokenizer) -> None:
    def plain(text: str) -> bool:
        return not re.search(r"\s\s\d", text) and not any(c.isnumeric() and c not in "0123456789" for c in text)

    texts = [text for text in [*EDGES, *every_character(), *mixtures(4000), *source_code()] if plain(text)]
    assert len(texts) > 3000
    assert differing(ours, theirs, texts) == []


@pytest.mark.parametrize(("text", "tokens"), [("a  5", ["a", "ĠĠ", "5"]), ("\n\n1.", ["ĊĊ", "1", "."])])
def test_each_digit_stands_alone(ours: Tokenizer, theirs: Tokenizer, text: str, tokens: list[str]) -> None:
    assert ours.encode(text, add_special_tokens=False).tokens == tokens
    assert theirs.encode(text, add_special_tokens=False).tokens != tokens  # when this fails, drop our remark on it


@pytest.mark.parametrize("name", ["modern.parquet", "books.parquet", "dev.parquet"])
def test_same_ids_on_prose(ours: Tokenizer, theirs: Tokenizer, theirs_with_digits: Tokenizer, name: str) -> None:
    path = Path(os.environ.get(DATA_VARIABLE, "")) / "prose" / name
    if not os.environ.get(DATA_VARIABLE) or not path.is_file():
        pytest.skip(f"set {DATA_VARIABLE} to a folder with prose/{name} to compare on real prose")
    from pyarrow import parquet

    texts = parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    texts = texts[:: max(1, len(texts) // 2500)]
    assert differing(ours, theirs_with_digits, texts) == []
    assert len(differing(ours, theirs, texts)) <= len(texts) // 100


def test_special_tokens(ours: Tokenizer, theirs: Tokenizer) -> None:
    assert {i: str(t.content) for i, t in ours.get_added_tokens_decoder().items()} == {
        i: str(t.content) for i, t in theirs.get_added_tokens_decoder().items()
    }
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.encode("<|im_start|>x").ids[0] == 1
    assert ours.encode("hi").ids == ours.encode("hi", add_special_tokens=False).ids  # no BOS unless the caller adds it


def test_decode_gives_the_text_back(ours: Tokenizer) -> None:
    for text in [*EDGES, *mixtures(300)]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_stdlib_is_where_we_look() -> None:
    assert len(list(source_code())) == 60, sys.version
