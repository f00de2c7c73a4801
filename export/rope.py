"""Rotary position embedding: frequencies and the cosine and sine tables of a graph.

Computed in float32 in the order that transformers uses, so that tables agree to the last bit or two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import ModelError

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretch: long waves divided by ``factor``, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class Rope:
    """One rotation: base ``theta``, head size, and how its frequencies are stretched.

    Attributes:
        linear_factor: positions divided by this (1: none).
        llama3: Llama 3.1 scaling or None. It changes frequencies at every length, short prompts included.
    """

    theta: float
    head_dim: int
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


def read_rope(config: Mapping[str, Any], kind: str, head_dim: int, where: str) -> Rope:
    """The rotation of layers of ``kind``, from a config of transformers 4 or 5.

    Raises:
        ModelError: 3203 for a scaling other than default, linear and llama3.
    """
    values = _parameters(config, kind)
    name = str(values.get("rope_type") or values.get("type") or "default")
    theta = float(values.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = values.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if name == "default" and partial == 1.0:
        return Rope(theta, head_dim)
    if name == "linear" and partial == 1.0:
        return Rope(theta, head_dim, linear_factor=float(values["factor"]))
    if name == "llama3" and partial == 1.0:
        scaling = Llama3Scaling(
            float(values["factor"]),
            float(values["low_freq_factor"]),
            float(values["high_freq_factor"]),
            int(values["original_max_position_embeddings"]),
        )
        return Rope(theta, head_dim, llama3=scaling)
    raise ModelError(
        3203,
        f"unsupported rotary embedding {name}, rotated part {partial}",
        where=where,
        expected="supported: default, linear, llama3, rotating whole heads",
    )


def _parameters(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Flat rope values of one layer kind. transformers 5 nests them by kind; 4 kept Gemma's local base apart."""
    given = config.get("rope_parameters") or {}
    if isinstance(given.get(kind), Mapping):
        return dict(given[kind])
    if given:
        return dict(given)
    if kind == "sliding_attention" and "rope_local_base_freq" in config:
        return {"rope_theta": config["rope_local_base_freq"]}
    return dict(config.get("rope_scaling") or {})


def inverse_frequencies(rope: Rope) -> F32:
    """float32 [D/2]: radians a position turns each pair of the head."""
    exponents = np.arange(0, rope.head_dim, 2, dtype=np.float32) / np.float32(rope.head_dim)
    plain = (np.float32(1.0) / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.llama3 is None:
        return (plain / np.float32(rope.linear_factor)).astype(np.float32)
    return _llama3(plain, rope.llama3)


def _llama3(plain: F32, s: Llama3Scaling) -> F32:
    wavelength = np.float32(2 * math.pi) / plain
    longest = s.original_positions / s.low_freq_factor
    shortest = s.original_positions / s.high_freq_factor
    slow = plain / np.float32(s.factor)
    ramp = (s.original_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    mixed = (1 - ramp) * slow + ramp * plain
    middle = (wavelength <= longest) & (wavelength >= shortest)
    return np.where(middle, mixed, np.where(wavelength > longest, slow, plain)).astype(np.float32)


def tables(rope: Rope, positions: int) -> tuple[F32, F32]:
    """Cosine and sine, float32 [positions, D/2] each."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(rope)[None, :]
    return np.cos(angles), np.sin(angles)
