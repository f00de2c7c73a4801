"""Payloads of other runtimes to latent prompts: what a server does with bytes that anybody may send.

In: a decoded JSON object and the LLM it must fit. Out: a checked ``LatentPrompt``. Order: names, size, form, numbers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ...core.errors import InputError
from ...engines.base import F32
from .prompt import MAX_POSITIONS, LatentPrompt
from .target import Target
from .torch_file import MAX_BYTES, unpack

VLLM_FIELDS: Final = frozenset(
    {"model", "prompt", "prompt_embeds", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "n"}
)
SGLANG_FIELDS: Final = frozenset({"input_embeds", "sampling_params", "stream"})


def from_vllm(payload: Mapping[str, Any], target: Target) -> LatentPrompt:
    """Body of vLLM's ``/v1/completions`` with ``prompt_embeds``.

    Raises:
        InputError: 2140 unknown field, malformed base64 or file; 2141 over a limit; 2142 sparse or other objects;
            2143 dtype; 2144 shape or hidden size; 2145 NaN or infinity; 2147 scale.
    """
    _known(payload, VLLM_FIELDS, "prompt_embeds")
    text = payload["prompt_embeds"]
    if not isinstance(text, str):
        expected = f"expected base64 of one tensor, got {type(text).__name__}"
        raise InputError(2140, "not a tensor file", where="prompt_embeds", expected=expected)
    if len(text) > MAX_BYTES // 3 * 4 + 4:
        raise InputError(
            2141, "payload too large", where="prompt_embeds", expected=f"expected at most {MAX_BYTES} bytes"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise InputError(2140, "malformed base64", where="prompt_embeds", expected=str(e)[:100]) from e
    return LatentPrompt.of([unpack(data)], target)


def from_sglang(payload: Mapping[str, Any], target: Target) -> LatentPrompt:
    """Body of SGLang's ``/generate`` with ``input_embeds`` of one prompt. Raises as ``from_vllm``."""
    _known(payload, SGLANG_FIELDS, "input_embeds")
    return LatentPrompt.of([_matrix(payload["input_embeds"], target)], target)


def _matrix(rows: Any, target: Target) -> F32:
    h = target.hidden_size
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise InputError(2140, "not a list of rows", where="input_embeds", expected=f"expected [T][{h}] numbers")
    if len(rows) > MAX_POSITIONS:
        expected = f"expected at most {MAX_POSITIONS}, got {len(rows)}"
        raise InputError(2141, "more positions than are taken", where="input_embeds", expected=expected)
    if wrong := next((len(row) for row in rows if len(row) != h), None):
        raise InputError(2144, "hidden size", where="input_embeds", expected=f"expected {h} numbers a row, got {wrong}")
    if not all(type(x) in (float, int) for row in rows for x in row):
        raise InputError(2143, "not numbers", where="input_embeds", expected="expected floating-point numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(rows, np.float64).astype(np.float32)
    except (ValueError, OverflowError) as e:
        raise InputError(2144, "rows of other lengths, or numbers too large", where="input_embeds") from e


def _known(payload: Mapping[str, Any], known: frozenset[str], needed: str) -> None:
    unknown = sorted(str(k)[:50] for k in payload.keys() - known)
    if unknown or needed not in payload:
        expected = f"expected {needed} and of the rest {', '.join(sorted(known - {needed}))}"
        what = f"unknown field {unknown[0]!r}" if unknown else f"{needed} is missing"
        raise InputError(2140, what, where="payload", expected=expected)
