"""One language model's numbers, from the JSON files of its folder.

``config.json`` describes the network; ``generation_config.json``, where there is one, may name further tokens that
end an answer (Llama-3.1 and Gemma 3 end a turn with tokens that only stand there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..core.errors import ModelError
from ..models.folder import ModelFolder
from .families import DecoderConfig, read_config, token_ids

GENERATION: Final = "generation_config.json"


def read_llm(llm: ModelFolder) -> DecoderConfig:
    """Numbers of a supported LLM; ``eos`` is the union of both files, those of config.json first.

    Raises:
        ModelError: 3203 unsupported architecture or feature, 3204 a file cannot be read or a number is missing or
            impossible.
    """
    config = read_config(llm.config, str(llm.path))
    path = llm.path / GENERATION
    if not path.is_file():
        return config
    more = token_ids(read_json(path), "eos_token_id", config.vocab_size, str(path))
    return replace(config, eos=tuple(dict.fromkeys((*config.eos, *more))))


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: 3204 missing or not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(3204, "cannot read a file of the model", where=str(path), expected=str(e)) from e
    if not isinstance(value, dict):
        raise ModelError(3204, "a file of the model is not a JSON object", where=str(path))
    return value
