"""A tokenizer of bytes: for encoders that read UTF-8, and for models too small to have learned words."""

from __future__ import annotations

from typing import Any, Final

BYTES: Final = 256
BOS: Final = 256
EOS: Final = 257


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose tokens are single bytes, with ``<bos>`` and ``<eos>`` after them."""
    # The printable stand-ins that byte-level BPE uses: visible bytes are themselves, others move past 255.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    vocab = {chr(b if b in visible else next(moved)): b for b in range(BYTES)}
    special = [(BOS, "<bos>"), (EOS, "<eos>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in special],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }
