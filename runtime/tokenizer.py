"""Text to token ids and back, with the tokenizer.json of a bundle.

Knows nothing of prompts or models. No special token is added, and a text that spells one (``<|im_end|>``)
is read as those characters: what a document says must not end a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import BundleError


class TextTokenizer:
    """One tokenizer.json.

    Raises:
        BundleError: 4001 the file is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises bare Exception
            raise BundleError(4001, "tokenizer cannot be read", where=str(path), expected=str(e)) from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on several threads."""
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def starts(self, text: str) -> list[int]:
        """Character of the text at which each of its tokens begins."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens leave nothing, half a character leaves U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
