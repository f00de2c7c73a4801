"""Build ``tokenizer.json`` and ``tokenizer_config.json`` from the tokenizer that a GGUF file describes.

In: GGUF metadata. Out: two JSON objects for the ``tokenizers`` library and for transformers. The text of
``tokenizer.json`` is written here and not by the library, so that its hash is the same whatever versions are
installed.

Two kinds: byte-level BPE (``gpt2``), and the SentencePiece BPE of Gemma, whose merges are not in the file and
follow from the order of its tokens.

Errors: ModelError 3203 for a tokenizer of another kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..core.errors import ModelError

CONTROL: Final = 3
USER_DEFINED: Final = 4
BYTE: Final = 6

_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS: Final = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS: Final[Mapping[str, dict[str, Any]]] = {
    # Each digit stands alone, then the words of GPT-2. transformers' own GGUF loader leaves the digits out,
    # which changes the ids of two or more spaces or newlines before a number.
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
}
_SPACE: Final = "\u2581"


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``tokenizers`` library's description of the file's tokenizer."""
    kind = metadata.get("tokenizer.ggml.model")
    architecture = str(metadata.get("general.architecture"))
    if kind == "gpt2":
        return _byte_level(metadata)
    if kind == "llama" and architecture.startswith("gemma"):
        return _gemma(metadata)
    raise ModelError(3203, "unsupported tokenizer", where=f"{architecture}, {kind}", expected="gpt2 or Gemma's llama")


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers wants beside ``tokenizer.json``: names of the special tokens, chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def to_text(tokenizer: Mapping[str, Any]) -> str:
    """The bytes of ``tokenizer.json``: compact, keys in the order given, closing newline."""
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n"


def _byte_level(metadata: Mapping[str, Any]) -> dict[str, Any]:
    pre = str(metadata.get("tokenizer.ggml.pre"))
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ModelError(3203, "unsupported pre-tokenizer", where=pre, expected=f"one of {known}")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]]
    return _document(
        metadata,
        tokens,
        normalizer=None,
        pre_tokenizer=_PRE_TOKENIZERS[pre],
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=_bpe(tokens, merges),
    )


def _gemma(metadata: Mapping[str, Any]) -> dict[str, Any]:
    # Runs of spaces are stored as spaces; the model writes every space as U+2581 and looks them up like that.
    tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in metadata["tokenizer.ggml.tokens"]]
    model = _bpe(tokens, _merges_by_rank(tokens), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return _document(
        metadata,
        tokens,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        model=model,
    )


def _merges_by_rank(tokens: Sequence[str]) -> list[list[str]]:
    """All pairs of tokens that make a token, in the order in which the made tokens stand in the vocabulary.

    Among the splits of one token the longer left half comes first, as in transformers' conversion of
    SentencePiece vocabularies.
    """
    known = set(tokens)
    return [
        [token[:cut], token[cut:]]
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in known and token[cut:] in known
    ]


def _bpe(tokens: Sequence[str], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }


def _document(metadata: Mapping[str, Any], tokens: Sequence[str], **parts: Any) -> dict[str, Any]:
    types = metadata["tokenizer.ggml.token_type"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, token, special=kind == CONTROL)
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(metadata, tokens),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _added(index: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **flags, "special": special}


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """Put BOS in front where the file asks for it (only when special tokens are wanted by the caller)."""
    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    bos = metadata["tokenizer.ggml.bos_token_id"]
    mark = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    one, two = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, one],
        "pair": [mark, one, {"SpecialToken": {"id": tokens[bos], "type_id": 1}}, two],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }
