"""A trained checkpoint as the exporter reads it: meta.json and the names of its files.

In: a folder, or ``reference`` for the one that ships. Out: ``Checkpoint``. Reads no weights and needs no
torch; training writes what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..core.errors import ModelError
from ..core.joined import joined_folder, rest_of
from ..engines.bundle import AdapterInfo, EncoderInfo
from ..models.folder import ModelFolder
from .model_config import read_json

FORMAT: Final = "latentwire-checkpoint"
VERSION: Final = 1
REFERENCE: Final = "reference"
OWN: Final = ("encoder.onnx", "encoder.safetensors", "quantise.onnx", "dequantise.onnx")
"""Files of an encoder, which are never taken from another one's folder."""


@dataclass(frozen=True)
class Adapter:
    """One adapter of a checkpoint: name of its LLM, what the manifest will say, the LLM it was trained for.

    ``features``: what else was learned for this LLM, by kind: ``sha256`` of its file, and facts about it.
    """

    llm: str
    info: AdapterInfo
    llm_fingerprint: str
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A trained encoder and its adapters.

    Attributes:
        path: folder.
        encoder: what the manifest will say of the encoder.
        encoder_llm: model whose embedding table and tokenizer the encoder uses.
        encoder_llm_fingerprint: which version of it.
        adapters: one for each LLM.
        quality: measured figures, passed on as they are.
        rest: where adapters, features and recorded answers lie: above the folder of a second encoder.
    """

    path: Path
    encoder: EncoderInfo
    encoder_llm: str
    encoder_llm_fingerprint: str
    adapters: tuple[Adapter, ...]
    quality: Mapping[str, Any]
    rest: Path

    def file(self, name: str) -> Path:
        """A file of the folder.

        Raises:
            ModelError: 3204 it is not there.
        """
        path = self.path / name
        if not path.is_file() and name not in OWN:
            path = self.rest / name
        if not path.is_file():
            raise ModelError(
                3204, "checkpoint file missing", where=str(path), expected=f"expected {name} beside meta.json"
            )
        return path

    def adapter_for(self, llm: ModelFolder) -> Adapter:
        """The adapter that was trained for this LLM.

        Raises:
            ModelError: 3102 there is none, or the LLM on this machine is another version of it.
        """
        same = [a for a in self.adapters if a.llm_fingerprint == llm.fingerprint]
        if same:
            return same[0]
        named = [a for a in self.adapters if a.llm == llm.name]
        have = ", ".join(f"{a.llm} {a.llm_fingerprint[:12]}" for a in self.adapters) or "none"
        raise ModelError(
            3102,
            "adapter belongs to another version of the LLM" if named else "checkpoint has no adapter for this LLM",
            where=f"{self.path / 'meta.json'}, LLM {llm.name}",
            expected=f"expected fingerprint {llm.fingerprint[:12]}, checkpoint has: {have}",
            fix="fetch that version of the LLM, or train an adapter for this one",
        )

    def check_encoder_llm(self, llm: ModelFolder) -> None:
        """Raise ModelError 3101 unless ``llm`` is the model whose embeddings the encoder was trained on."""
        if llm.fingerprint != self.encoder_llm_fingerprint:
            raise ModelError(
                3101,
                "encoder was trained on other embeddings",
                where=f"{self.path / 'meta.json'}, model {llm.name}",
                expected=f"expected fingerprint {self.encoder_llm_fingerprint[:12]}, got {llm.fingerprint[:12]}",
                fix="fetch the version of the model that the checkpoint was trained with",
            )


def read_checkpoint(name: str | Path, encoder: str = "") -> Checkpoint:
    """Read meta.json of a checkpoint.

    Args:
        name: folder; ``reference``, where no such folder exists, is the checkpoint that ships.
        encoder: kind of its second encoder; empty: the one that its adapters were trained with.

    Raises:
        ModelError: 3101 it was joined to another checkpoint, 3204 no meta.json or not JSON, 3220 not a checkpoint or
            incomplete, 3221 a later version, 3224 a feature that the config names is not there.
    """
    path = Path(name)
    if str(name) == REFERENCE and not path.is_dir():
        path = Path(__file__).resolve().parent.parent / REFERENCE
    if encoder:
        path = joined_folder(path, encoder)
    meta = read_json(path / "meta.json")
    if meta.get("format") != FORMAT:
        raise ModelError(3220, "not a checkpoint", where=str(path), expected=f'expected "format": "{FORMAT}"')
    if not isinstance(meta.get("version"), int) or meta["version"] > VERSION:
        raise ModelError(
            3221,
            "checkpoint of a newer version",
            where=str(path),
            expected=f"expected at most {VERSION}, got {meta.get('version')}",
        )
    try:
        return _build(path, meta)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ModelError(
            3220, "checkpoint metadata is incomplete", where=str(path / "meta.json"), expected=f"{type(e).__name__} {e}"
        ) from e


def _build(path: Path, meta: Mapping[str, Any]) -> Checkpoint:
    e = meta["encoder"]
    numbers = (int(e["d_z"]), int(e["latents"]), int(e["max_tokens"]))
    # Checkpoints of before there were features have none.
    features = {llm: {kind: dict(f) for kind, f in own.items()} for llm, own in meta.get("features", {}).items()}
    adapters = tuple(
        Adapter(
            llm,
            AdapterInfo(str(a["kind"]), int(a["task_tokens"]), str(a["fingerprint"])),
            str(a["llm_fingerprint"]),
            features.get(llm, {}),
        )
        for llm, a in meta["adapters"].items()
    )
    for kind in meta.get("config", {}).get("features", ()):
        for adapter in adapters:
            if kind not in adapter.features:
                raise ModelError(
                    3224,
                    f"feature {kind} of {adapter.llm} has no weights",
                    where=str(path / "meta.json"),
                    expected="expected it among features",
                    fix="take a checkpoint that has them; without them it would be another model",
                )
    return Checkpoint(
        path,
        EncoderInfo(str(e["kind"]), str(e["fingerprint"]), *numbers, str(e.get("span_type", "equal"))),
        str(e["llm"]),
        str(e["llm_fingerprint"]),
        adapters,
        dict(meta.get("quality") or {}),
        rest_of(path, meta, lambda folder: read_json(folder / "meta.json")),
    )


def file_stem(llm: str) -> str:
    """How an LLM is called in file names: ``adapter-STEM.onnx``."""
    return llm.split("/")[-1]
