"""Checkpoints: safetensors and JSON, never pickle.

DIR/meta.json                   what it is, the whole config, where training stood, measured quality
DIR/encoder.safetensors         fp32 while training, fp16 when published
DIR/adapter-LLM.safetensors     one per LLM
DIR/feature-KIND-LLM.safetensors  one per feature of an LLM
DIR/state.safetensors           optimiser moments (training only)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.errors import BundleError, ModelError
from ..core.files import atomic_folder, atomic_write_json, sha256_file
from ..core.joined import rest_of
from .config import Config, from_mapping
from .features.base import Feature
from .llm import LMWrapper
from .model import LatentModel

FORMAT, VERSION = "latentwire-checkpoint", 1
BEFORE: dict[str, dict[str, Any]] = {
    "embed_layer": {"span_type": "equal"},
    "bytes": {"span_type": "equal", "byte_lexicon": 0},
}
"""What a config with this encoder_type, stored before an option existed, meant by it, where that is not its default."""


def encoder_file() -> str:
    """File name of the encoder's weights."""
    return "encoder.safetensors"


def adapter_file(llm: str) -> str:
    """File name of one adapter's weights."""
    return f"adapter-{llm.split('/')[-1]}.safetensors"


def feature_file(kind: str, llm: str) -> str:
    """File name of the weights of one feature."""
    return f"feature-{kind}-{llm.split('/')[-1]}.safetensors"


def fingerprint(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """SHA-256 over facts (as JSON) and every tensor's name, dtype, shape and bytes, in name order."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().cpu()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def module_tensors(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and persistent buffers as contiguous CPU tensors of one dtype; whole numbers keep theirs."""
    return {
        k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in module.state_dict().items()
    }


def save(folder: Path, model: LatentModel, dtype: torch.dtype = torch.float32, **extra: Any) -> dict[str, Any]:
    """Write a checkpoint folder atomically, replacing an older one as a whole; see ``write``."""
    with atomic_folder(folder, overwrite=True) as temporary:
        return write(temporary, model, dtype, **extra)


def write(folder: Path, model: LatentModel, dtype: torch.dtype, **extra: Any) -> dict[str, Any]:
    """Write weights and ``meta.json`` into an existing folder; returns the metadata.

    Args:
        folder: where.
        model: what to save.
        dtype: fp32 to train on, fp16 to publish.
        extra: further top-level entries of ``meta.json``; ``state`` (tensors) goes to ``state.safetensors``.
    """
    state: dict[str, Tensor] = extra.pop("state", {})
    config = model.config
    encoder = module_tensors(model.encoder, dtype)
    facts = {
        "kind": config.encoder_type,
        "llm": model.source.name,
        "llm_fingerprint": model.source.fingerprint,
        "d_z": config.d_z,
        "latents": config.latent_len,
        "max_tokens": config.max_tokens,
    }
    if config.cut != "equal":
        # Latents of other spans are other latents; absent, as before there was a choice, it keeps older fingerprints.
        facts["span_type"] = config.cut
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(dtype).removeprefix("torch."),
        "encoder": {**facts, "fingerprint": fingerprint(encoder, facts)},
        "adapters": {},
        "features": {},
        "config": config.to_json(),
        **extra,
    }
    save_file(encoder, folder / encoder_file())
    for llm in model.llms:
        tensors = module_tensors(model.adapter(llm), dtype)
        about = {
            "kind": config.adapter_type,
            "task_tokens": config.task_tokens,
            "llm_fingerprint": llm.fingerprint,
            "encoder": meta["encoder"]["fingerprint"],
        }
        meta["adapters"][llm.name] = {**about, "fingerprint": fingerprint(tensors, about)}
        save_file(tensors, folder / adapter_file(llm.name))
        for kind, feature in model.features_of(llm).items():
            own = module_tensors(feature, dtype)
            path = folder / feature_file(kind, llm.name)
            save_file(own, path)
            of_llm = meta["features"].setdefault(llm.name, {})
            of_llm[kind] = {
                "tensors": len(own),
                "sha256": sha256_file(path),
                "exports": feature.exports,
                **feature.facts(),
            }
    if state:
        save_file(state, folder / "state.safetensors")
    for path in folder.glob("*.safetensors"):
        # The library makes them private to the writer; a checkpoint is to be read by others.
        path.chmod(0o644)
    atomic_write_json(folder / "meta.json", meta)
    return meta


def read_meta(folder: Path) -> dict[str, Any]:
    """``meta.json`` of a checkpoint folder.

    Raises:
        ModelError: 3204 missing, 3220 not ours, unreadable or incomplete, 3221 written by a newer version.
        BundleError: 4005 pickle.
    """
    path = folder / "meta.json"
    if not path.is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"))
        if pickles:
            raise BundleError(
                4005,
                "pickle checkpoint refused",
                where=str(folder / pickles[0]),
                expected="expected safetensors and meta.json",
                fix="load it where you trust it and save its tensors with safetensors",
            )
        raise ModelError(3204, "not a checkpoint folder", where=str(folder), expected="expected meta.json in it")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ModelError(3220, "checkpoint metadata is not JSON", where=str(path), expected=str(e)) from e
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ModelError(3220, "not a LatentWire checkpoint", where=str(path), expected=f"expected format {FORMAT}")
    if not isinstance(meta.get("version"), int) or meta["version"] > VERSION:
        raise ModelError(
            3221,
            "checkpoint of a newer version",
            where=str(path),
            expected=f"expected at most {VERSION}, got {meta.get('version')}",
        )
    # Checkpoints of before there were features have none.
    meta.setdefault("features", {})
    for name in ("config", "encoder", "adapters", "features"):
        if not isinstance(meta.get(name), dict):
            raise ModelError(3220, "checkpoint metadata is incomplete", where=str(path), expected=f"expected {name}")
    return meta


def config_of(meta: dict[str, Any], where: str) -> Config:
    """The config a checkpoint was trained with; options that came later mean what was done before they came.

    Raises:
        ModelError: 3210 for an option that this version does not know.
    """
    return from_mapping({**BEFORE.get(meta["config"].get("encoder_type"), {}), **meta["config"]}, where)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file.

    Raises:
        ModelError: 3204 missing, 3222 truncated or damaged.
    """
    if not path.is_file():
        raise ModelError(3204, "checkpoint file missing", where=str(path))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise ModelError(3222, "checkpoint file is damaged", where=str(path), expected=str(e)) from e


def load_module(module: nn.Module, path: Path) -> None:
    """Set every parameter and persistent buffer of ``module``; nothing missing, nothing left over.

    Raises:
        ModelError: 3204, 3222 as above; 3223 names or shapes differ.
    """
    tensors = load_tensors(path)
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if wrong:
        raise ModelError(
            3223,
            f"checkpoint tensor {wrong[0]} does not fit",
            where=str(path),
            expected=f"expected shape {wanted.get(wrong[0], 'none')}, got {found.get(wrong[0], 'none')}",
        )
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def adapter_facts(meta: dict[str, Any], llm: LMWrapper, folder: Path) -> dict[str, Any]:
    """What the metadata says of the adapter of ``llm``.

    Raises:
        ModelError: 3102 there is none, or it was trained for another version of the LLM.
    """
    about: dict[str, Any] | None = meta["adapters"].get(llm.name)
    if about is None:
        raise ModelError(
            3102,
            f"no adapter for {llm.name}",
            where=str(folder),
            expected="has " + ", ".join(sorted(meta["adapters"])),
        )
    if about["llm_fingerprint"] != llm.fingerprint:
        raise ModelError(
            3102,
            f"adapter was trained for another {llm.name}",
            where=str(folder),
            expected=f"expected {llm.fingerprint[:12]}, got {about['llm_fingerprint'][:12]}",
        )
    return about


def load_feature(feature: Feature, meta: dict[str, Any], llm: LMWrapper, folder: Path) -> None:
    """Set the weights of one feature of an LLM.

    Raises:
        ModelError: 3224 the checkpoint has none, or not those that it was saved with; 3223 another shape.
    """
    path = folder / feature_file(feature.kind, llm.name)
    about = meta["features"].get(llm.name, {}).get(feature.kind)
    if about is None or not path.is_file():
        raise ModelError(
            3224,
            f"feature {feature.kind} of {llm.name} has no weights",
            where=str(folder),
            expected=f"expected {path.name}" + ("" if about else ", named in meta.json"),
            fix="take a checkpoint that has them; without them it would be another model",
        )
    found = sha256_file(path)
    if found != about["sha256"]:
        raise ModelError(
            3224,
            f"weights of feature {feature.kind} of {llm.name} are damaged, or of another checkpoint",
            where=str(path),
            expected=f"expected SHA-256 {about['sha256'][:12]}, got {found[:12]}",
        )
    if len(load_tensors(path)) != about["tensors"]:
        raise ModelError(
            3224,
            f"feature {feature.kind} of {llm.name} has another number of tensors than its checkpoint says",
            where=str(path),
            expected=f"expected {about['tensors']}, got {len(load_tensors(path))}",
        )
    load_module(feature, path)


def encoder_fits(meta: dict[str, Any], source: LMWrapper, folder: Path) -> None:
    """Check that the encoder was made of this LLM.

    Raises:
        ModelError: 3101 it was made of another one.
    """
    about = meta["encoder"]
    if about.get("llm_fingerprint", source.fingerprint) != source.fingerprint:
        raise ModelError(
            3101,
            f"encoder was made of another {source.name}: its token table and tokenizer do not fit",
            where=str(folder),
            expected=f"expected {about['llm_fingerprint'][:12]}, got {source.fingerprint[:12]}",
            fix="install the version it was trained with",
        )


def load_into(folder: Path, model: LatentModel) -> dict[str, Any]:
    """Load all weights of a checkpoint into a model of the same config; returns the metadata.

    Raises:
        ModelError: 3102 if an adapter was trained for another LLM; 3101 if the encoder reads another tokenizer; 3224
            for features; and all of the above.
    """
    meta = read_meta(folder)
    encoder_fits(meta, model.source, folder)
    load_module(model.encoder, folder / encoder_file())
    rest = rest_of(folder, meta, read_meta)
    for llm in model.llms:
        adapter_facts(meta, llm, folder)
        load_module(model.adapter(llm), rest / adapter_file(llm.name))
        for feature in model.features_of(llm).values():
            load_feature(feature, meta, llm, rest)
    return meta
