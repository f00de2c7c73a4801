"""A deterministic numpy engine on a tiny random model, and the folder that describes it.

For tests and documentation: same protocol, same shapes, same rules as a real engine, no ONNX and no
download. Its answers mean nothing; they depend on every input and never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..core.errors import BundleError
from .base import F32, I64, Engine
from .buffers import Buffers, alloc_buffers
from .bundle import MANIFEST, AdapterInfo, Bundle, EncoderInfo, LlmInfo, Manifest, describe_files, read_bundle
from .byte_tokenizer import BOS, EOS, byte_tokenizer
from .checks import (
    WITHOUT,
    check_decode,
    check_extend,
    check_lengths,
    check_prefill,
    check_splice,
    finite,
    fitted_capacity,
    optional_part,
)
from .cross import Cross
from .prefix import BEFORE, ONTO, Prefix, place
from .specs import bundle_specs, prefix_spec, quantiser_specs
from .tensors import GraphSpec, check_all

FAMILY: Final = "toy"
WEIGHTS: Final = "toy.json"
VOCAB: Final = 258
HEADS: Final = 2
KV_HEADS: Final = 1
HEAD_DIM: Final = 8
HIDDEN: Final = HEADS * HEAD_DIM
LAYERS: Final = 2
TOY_CODES: Final = 16
TOY_LEVELS: Final = 4


@dataclass
class ToyWeights:
    """Random matrices from one seed; float32."""

    seed: int
    d_z: int
    task_tokens: int
    codes: int = 0
    embedding: F32 = field(init=False)
    layers: list[dict[str, F32]] = field(init=False)
    to_slots: list[F32] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)

        def matrix(*shape: int) -> F32:
            values: F32 = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
            return values

        self.embedding = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
        self.to_z = matrix(HIDDEN, self.d_z)
        self.from_z = matrix(self.d_z, HIDDEN)
        self.head = matrix(HIDDEN, VOCAB)
        self.bias = np.full(VOCAB, -1e4, np.float32)  # answers are printable: ASCII, newline, EOS
        self.bias[[10, *range(32, 127), EOS]] = 0
        self.task = rng.standard_normal((self.task_tokens, HIDDEN)).astype(np.float32)
        kv = KV_HEADS * HEAD_DIM
        # Rounded as training does it; a code says on which side of zero its direction lies, and how far.
        self.to_codes = matrix(self.d_z, self.codes) if self.codes else np.zeros((self.d_z, 0), np.float32)
        shapes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, kv), "v": (HIDDEN, kv), "o": (HIDDEN, HIDDEN)}
        self.layers = [{n: matrix(*s) for n, s in (shapes | {"up": (HIDDEN, HIDDEN)}).items()} for _ in range(LAYERS)]
        self.to_slots = [rng.standard_normal((self.d_z, 2 * kv)).astype(np.float32) for _ in range(LAYERS)]


class ToyEngine:
    """See ``base.Engine``: same arguments, same errors."""

    max_batch = 0
    max_prompt = 0
    fill = 0

    def __init__(self, bundle: Bundle) -> None:
        self.name = "toy"
        self.bundle = bundle
        settings = json.loads(bundle.file(WEIGHTS).read_text(encoding="utf-8"))
        m = bundle.manifest
        self.weights = ToyWeights(int(settings["seed"]), m.encoder.d_z, m.adapter.task_tokens, _code_dims(m))

    def lanes(self) -> Sequence[Engine]:
        """As ``base.Engine.lanes``: none."""
        return ()

    def io_spec(self) -> Mapping[str, GraphSpec]:
        """As ``base.Engine.io_spec``."""
        return self.bundle.manifest.graphs

    def aliases(self) -> Mapping[str, str]:
        """As ``base.Engine.aliases``."""
        return {f"present_{kv}.{i}": f"past_{kv}.{i}" for i in range(LAYERS) for kv in "kv"}

    def encode(self, input_ids: I64, lengths: I64, latents: int) -> F32:
        """As ``base.Engine.encode``."""
        slots = np.arange(latents, dtype=np.int64)
        given = {"input_ids": input_ids, "lengths": lengths, "slots": slots}
        sizes = check_all(given, self.io_spec()["encoder"].inputs)
        longest = min(sizes["S"], self.bundle.manifest.encoder.max_tokens)
        check_lengths(lengths, sizes["B"], longest, "encoder lengths")
        states = self.weights.embedding[input_ids % VOCAB]
        z = np.zeros((sizes["B"], latents, self.weights.d_z), np.float32)
        for b, length in enumerate(lengths):
            spans = np.array_split(states[b, :length], min(latents, int(length)))
            z[b, : len(spans)] = np.stack([s.mean(axis=0) for s in spans]) @ self.weights.to_z
        finite(z, "latents", self.name)
        return z

    def quantise(self, latents: F32) -> I64:
        """As ``base.Engine.quantise``."""
        check_all({"latents": latents}, self.io_spec()[optional_part(self.bundle, "quantise")].inputs)
        x = np.tanh(latents @ self.weights.to_codes)
        codes: I64 = np.clip(np.floor((x + 1) * (TOY_LEVELS / 2)), 0, TOY_LEVELS - 1).astype(np.int64)
        return codes

    def dequantise(self, codes: I64) -> F32:
        """As ``base.Engine.dequantise``."""
        check_all({"codes": codes}, self.io_spec()[optional_part(self.bundle, "dequantise")].inputs)
        x = (2 * codes + 1) / TOY_LEVELS - 1
        z: F32 = (x @ np.linalg.pinv(self.weights.to_codes)).astype(np.float32)
        return z

    def cross(self, latents: F32) -> Cross:
        """As ``base.Engine.cross``: the toy decoder has none."""
        raise BundleError(4008, WITHOUT["cross"], where=str(self.bundle.path), expected="a part cross")

    def adapt(self, latents: F32) -> F32:
        """As ``base.Engine.adapt``."""
        check_all({"latents": latents}, self.io_spec()["adapter"].inputs)
        task = np.broadcast_to(self.weights.task, (len(latents), *self.weights.task.shape))
        rows: F32 = np.concatenate([latents @ self.weights.from_z, task], axis=1)
        finite(rows, "adapter rows", self.name)
        return rows

    def prefix(self, latents: F32) -> tuple[F32, F32]:
        """As ``base.Engine.prefix``; both kinds begin behind BOS, where the latents stand too."""
        check_all({"latents": latents}, self.io_spec()[optional_part(self.bundle, "prefix")].inputs)
        groups = self.bundle.manifest.features.get(BEFORE, {}).get("groups", 1)
        z = latents[:, ::groups]
        both = [_heads(z @ matrix) for matrix in self.weights.to_slots]
        places = np.broadcast_to(1 + np.arange(z.shape[1]), z.shape[:2])
        keys = np.stack([_rotate(x[:, :KV_HEADS], places, True) for x in both], axis=1)
        return keys.astype(np.float32), np.stack([x[:, KV_HEADS:] for x in both], axis=1)

    def splice(self, input_ids: I64, row_index: I64, rows: F32) -> F32:
        """As ``base.Engine.splice``."""
        given: Mapping[str, npt.NDArray[Any]] = {"input_ids": input_ids, "row_index": row_index, "rows": rows}
        sizes = check_all(given, self.io_spec()["splice"].inputs)
        check_splice(input_ids, row_index, sizes["R"], VOCAB)
        picked = np.take_along_axis(rows, np.maximum(row_index, 0)[..., None], axis=1)
        return np.where(row_index[..., None] < 0, self.weights.embedding[input_ids], picked)

    def alloc(self, batch: int, capacity: int) -> Buffers:
        """As ``base.Engine.alloc``."""
        manifest = self.bundle.manifest
        return alloc_buffers(manifest.llm, batch, fitted_capacity(batch, capacity, manifest))

    def prefill(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.prefill``."""
        check_prefill(buffers.batch, buffers.capacity, inputs_embeds, lengths, HIDDEN)
        buffers.lengths[:] = 0
        self._step(buffers, inputs_embeds, lengths)

    def extend(self, buffers: Buffers, inputs_embeds: F32, lengths: I64) -> None:
        """As ``base.Engine.extend``."""
        check_extend(buffers.lengths, buffers.capacity, inputs_embeds, lengths, HIDDEN, buffers.batch)
        self._step(buffers, inputs_embeds, lengths)

    def insert(self, buffers: Buffers, prefix: Prefix) -> None:
        """As ``base.Engine.insert``."""
        place(buffers, prefix)

    def decode(self, buffers: Buffers) -> None:
        """As ``base.Engine.decode``."""
        check_decode(buffers.lengths, buffers.capacity)
        embeds = self.weights.embedding[buffers.next_token][:, None]
        self._step(buffers, embeds, np.ones(buffers.batch, np.int64))

    def close(self) -> None:
        """As ``base.Engine.close``."""
        self.weights.layers.clear()

    def _step(self, buffers: Buffers, embeds: F32, lengths: I64) -> None:
        """All layers over ``embeds`` [B,S,H]; writes the cache from ``buffers.lengths`` on."""
        x = embeds.astype(np.float32)
        for i, layer in enumerate(self.weights.layers):
            x = x + self._attend(_norm(x), layer, buffers, i)
            x = x + np.tanh(_norm(x) @ layer["up"])
        last = np.take_along_axis(_norm(x), (lengths - 1)[:, None, None], axis=1)[:, 0]
        buffers.logits[:] = last @ self.weights.head + self.weights.bias
        finite(buffers.logits, "logits", self.name)
        buffers.next_token[:] = buffers.logits.argmax(axis=1)
        buffers.lengths += lengths

    def _attend(self, x: F32, layer: dict[str, F32], buffers: Buffers, index: int) -> F32:
        batch, new, _ = x.shape
        positions = buffers.lengths[:, None] + np.arange(new)  # [B,S]
        q, k, v = (_rotate(_heads(x @ layer[n]), positions, n != "v") for n in "qkv")
        cached = [buffers.cache[f"past_{kv}.{index}"] for kv in "kv"]
        for b, start in enumerate(buffers.lengths):
            for cache, fresh in zip(cached, (k, v), strict=True):
                cache[b, :, start : start + new] = fresh[b]
        keys, values = (np.repeat(cache, HEADS // KV_HEADS, axis=1) for cache in cached)
        scores = np.einsum("bhsd,bhcd->bhsc", q, keys) / np.sqrt(HEAD_DIM)
        hidden = np.arange(buffers.capacity) > positions[..., None]  # [B,S,C]: a slot after its reader
        scores = np.where(hidden[:, None], -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhsc,bhcd->bshd", weights, values).reshape(batch, new, HIDDEN)
        out: F32 = (mixed @ layer["o"]).astype(np.float32)
        return out


def _heads(x: F32) -> F32:
    return x.reshape(*x.shape[:2], -1, HEAD_DIM).transpose(0, 2, 1, 3)


def _rotate(x: F32, positions: I64, rotate: bool) -> F32:
    """Rotary embedding over halves of the head; x [B,h,S,D], positions [B,S]."""
    if not rotate:
        return x
    half = HEAD_DIM // 2
    angle = positions[:, None, :, None] / 100.0 ** (np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _norm(x: F32) -> F32:
    scale: F32 = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    return scale


def _code_dims(manifest: Manifest) -> int:
    return TOY_CODES if "quantise" in manifest.graphs else 0


def write_toy_bundle(
    folder: str | Path,
    *,
    seed: int = 0,
    d_z: int = 8,
    latents: int = 8,
    task_tokens: int = 2,
    max_tokens: int = 64,
    quantiser: bool = False,
    features: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """Write a complete toy bundle into ``folder`` (made if absent) and open it.

    Two seeds give two encoders with different fingerprints, whose frames must not be mixed. Both tokenizers
    are byte-level: one token a UTF-8 byte, 256 BOS, 257 EOS. ``quantiser`` adds one of 16 codes of 4 levels.
    ``features``: as in a manifest; a deep prefix and a coprocessor are at work, others are only named.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = json.dumps(byte_tokenizer(), ensure_ascii=False)
    for name in ("tokenizer.json", "encoder_tokenizer.json"):
        (path / name).write_text(tokenizer, encoding="utf-8")
    (path / WEIGHTS).write_text(json.dumps({"seed": seed}), encoding="utf-8")
    mark = hashlib.sha256(f"toy {seed} {d_z} {task_tokens}".encode()).hexdigest()
    llm = LlmInfo("toy", mark, FAMILY, HIDDEN, VOCAB, LAYERS, KV_HEADS, HEAD_DIM, 2048, (BOS,), (EOS,), EOS, "float32")
    slots = {"prefix": prefix_spec(llm, d_z)} if {BEFORE, ONTO} & set(features or ()) else {}
    manifest = Manifest(
        files=describe_files(path),
        encoder=EncoderInfo("toy", mark, d_z, latents, max_tokens),
        llm=llm,
        adapter=AdapterInfo("toy", task_tokens, mark),
        graphs=bundle_specs(llm, d_z, "float32") | quantiser_specs(d_z, TOY_CODES if quantiser else 0) | slots,
        precision="fp32",
        quality={},
        versions={},
        features=features or {},
    )
    sealed = replace(manifest, fingerprint=manifest.to_json()["fingerprint"])
    (path / MANIFEST).write_text(json.dumps(sealed.to_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return read_bundle(path)
