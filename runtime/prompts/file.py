"""A latent prompt as a safetensors file.

Tensors ``token_ids`` int64 [T], ``is_token`` uint8 [T], ``latents`` float32 [n,H]; metadata names the LLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...core.errors import InputError
from ...core.files import atomic_write_bytes
from .prompt import LatentPrompt
from .target import Target
from .torch_file import MAX_BYTES

FORMAT: Final = "latentwire-prompt"
_TENSORS: Final = {"token_ids": (np.int64, 1), "is_token": (np.uint8, 1), "latents": (np.float32, 2)}


def save(prompt: LatentPrompt, path: Path) -> None:
    """Write atomically. Raises EnvironmentFault 5004, 5005, 5007 as ``core.files``."""
    from safetensors.numpy import save as to_bytes

    tensors: dict[str, Any] = {
        "token_ids": prompt.token_ids,
        "is_token": prompt.is_token.astype(np.uint8),
        "latents": np.ascontiguousarray(prompt.latents),
    }
    llm = prompt.target
    about = {
        "fingerprint": llm.fingerprint,
        "name": llm.name,
        "vocab_size": llm.vocab_size,
        "max_positions": llm.max_positions,
        "scale": llm.scale,
        "dtype": llm.dtype,
    }
    atomic_write_bytes(path, to_bytes(tensors, {"format": FORMAT, "version": "1", "llm": json.dumps(about)}))


def load(path: Path, target: Target) -> LatentPrompt:
    """Read and check against the LLM that shall read it, whose limits and scale count, not the file's.

    Raises:
        InputError: 2106 no such file; 2140 not such a file; 2141 too large; 2143 dtype; 2144 shape; 2145 NaN or
            infinity; 2146 for another LLM; 2147 scale.
    """
    if not path.is_file():
        raise InputError(2106, "a file is missing", where=str(path))
    if path.stat().st_size > MAX_BYTES:
        raise InputError(2141, "file too large", where=str(path), expected=f"expected at most {MAX_BYTES} bytes")
    name, fingerprint, tensors = _read(path)
    for key, (dtype, ndim) in _TENSORS.items():
        found = tensors[key]
        if found.dtype != dtype or found.ndim != ndim:
            expected = f"expected {np.dtype(dtype)} of {ndim} dimensions, got {found.dtype} {list(found.shape)}"
            raise InputError(2143, f"tensor {key} of another type", where=str(path), expected=expected)
    if fingerprint != target.fingerprint:
        expected = f"expected {target.name} {target.fingerprint[:12]}, got {name[:50]} {fingerprint[:12]}"
        raise InputError(2146, "latent prompt for another LLM", where=str(path), expected=expected)
    return LatentPrompt(tensors["token_ids"], tensors["is_token"] != 0, tensors["latents"], target)


def _read(path: Path) -> tuple[str, str, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT or meta.get("version") != "1" or set(file.keys()) != set(_TENSORS):
                raise InputError(2140, "not a latent prompt", where=str(path), expected=f"expected format {FORMAT} 1")
            about = json.loads(meta.get("llm", ""))
            return str(about["name"]), str(about["fingerprint"]), {key: file.get_tensor(key) for key in _TENSORS}
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as e:
        raise InputError(2140, "not a latent prompt", where=str(path), expected=str(e)[:100]) from e
