"""A model on disk, ready to use: what it consists of, whether it is whole, its fingerprint.

In: a folder in Hugging Face form. Out: ``ModelFolder``. Knows nothing of where it came from.

Errors: ModelError 3203 (family not supported), 3204 (file missing or of another size), 3202 (content changed);
BundleError 4005 (only pickled weights).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..core.console import track
from ..core.errors import BundleError, EnvironmentFault, ModelError
from ..core.files import atomic_write_json, sha256_file
from .families import SUPPORTED

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
RECORD: Final = "latentwire.json"
"""Written when a model is added: where it came from, sizes and hashes, the fingerprint."""

PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ASK_FOR_SAFETENSORS: Final = "save the model with safetensors: model.save_pretrained(folder)"


@dataclass(frozen=True)
class ModelFolder:
    """A language model on disk.

    Attributes:
        path: the folder.
        name: catalogue name, ``hf:org/name`` or the folder's name.
        config: content of ``config.json``.
        tokenizer_path: ``tokenizer.json`` of the ``tokenizers`` library.
        weights: safetensors files, sorted.
        fingerprint: SHA-256 (hex) over the hashes of configuration, tokenizer and weights.
    """

    path: Path
    name: str
    config: dict[str, Any]
    tokenizer_path: Path
    weights: list[Path]
    fingerprint: str

    @property
    def family(self) -> str:
        """``model_type`` of the configuration: llama, qwen2, gemma3_text."""
        return str(self.config["model_type"])


def open_folder(path: Path, name: str, cache: Path, *, verify: bool = False) -> ModelFolder:
    """The model in ``path``.

    Args:
        path: folder in Hugging Face form.
        name: how to call it.
        cache: folder in which fingerprints of folders without a record of their own are remembered.
        verify: read every byte again and compare with the record (3202) instead of trusting sizes.
    """
    config = read_config(path)
    weights = _find_weights(path)
    tokenizer = path / TOKENIZER
    if not tokenizer.is_file():
        fix = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it"
        raise ModelError(3204, "no tokenizer.json", where=str(path), expected="a fast tokenizer", fix=fix)
    record = read_record(path)
    if record is None:
        mark = _fingerprint_remembered(path, [path / CONFIG, tokenizer, *weights], cache, again=verify)
    else:
        _check_record(path, record, verify=verify)
        mark = str(record["fingerprint"])
    return ModelFolder(path, name, config, tokenizer, weights, mark)


def read_record(path: Path) -> dict[str, Any] | None:
    """``latentwire.json`` of the folder; None where there is none, ModelError 3204 where it is unreadable."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        return {**record, "files": dict(record["files"]), "fingerprint": str(record["fingerprint"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(path / RECORD, f"a readable record, got {error}") from error


def is_whole(path: Path) -> bool:
    """Whether the folder has a record and all its files have the recorded sizes."""
    try:
        record = read_record(path)
        if record is None:
            return False
        _check_record(path, record, verify=False)
    except ModelError:
        return False
    return True


def fingerprint(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the hashes (hex) of ``config.json``, ``tokenizer.json`` and the weights, by file name."""
    kept = {name: value for name, value in hashes.items() if name in (CONFIG, TOKENIZER) or name.endswith("tensors")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a model folder, whose weights need not be there. Raises ModelError 3203, 3204."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except FileNotFoundError as error:
        fix = "give a folder in Hugging Face form, or a name from: latentwire models list"
        raise ModelError(3204, "no config.json", where=str(path), expected="a model folder", fix=fix) from error
    except ValueError as error:
        raise ModelError(3204, "config.json is not JSON", where=str(path), expected=str(error)) from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise ModelError(3203, "unsupported architecture", where=str(path), expected=f"one of {known}, got {family}")
    return dict(config)


def _find_weights(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        try:
            names = sorted(set(json.loads((path / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _incomplete(path / INDEX, f"a readable index, got {error!r}") from error
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise _incomplete(path / INDEX, f"file names ending in .safetensors, got {name!r}")
    else:
        names = [WEIGHTS]
    missing = [name for name in names if not (path / name).is_file()]
    if not missing:
        return [path / name for name in names]
    pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
    if pickles and missing == [WEIGHTS]:
        what = f"safetensors weights, got {', '.join(pickles[:3])}"
        raise BundleError(4005, "pickled weights are not read", where=str(path), expected=what, fix=ASK_FOR_SAFETENSORS)
    raise _incomplete(path / missing[0], "all weight files")


def _check_record(path: Path, record: Mapping[str, Any], *, verify: bool) -> None:
    for name, about in record["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != about["bytes"]:
            got = "no such file" if size is None else f"{size} bytes"
            raise _incomplete(file, f"{about['bytes']} bytes, got {got}")
    if verify:
        files = {name: path / name for name in record["files"]}
        for name, digest in _hash_all(files).items():
            if digest != record["files"][name]["sha256"]:
                raise ModelError(
                    3202,
                    "file has changed since it was written",
                    where=str(path / name),
                    expected=f"SHA-256 {record['files'][name]['sha256']}, got {digest}",
                    fix="remove the model and add it again",
                )


def _hash_all(files: Mapping[str, Path]) -> dict[str, str]:
    with track("check model", sum(path.stat().st_size for path in files.values()), "B") as progress:
        return {name: sha256_file(path, progress.advance) for name, path in files.items()}


def _fingerprint_remembered(path: Path, files: Iterable[Path], cache: Path, *, again: bool) -> str:
    """Fingerprint of a foreign folder; hashing gigabytes each time is spared while size and time stay the same."""
    chosen = {file.name: file for file in files}
    stats = {name: file.stat() for name, file in chosen.items()}
    key = [str(path.resolve()), {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}]
    memory = cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
    if not again:
        try:
            return str(json.loads(memory.read_bytes())["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    mark = fingerprint(_hash_all(chosen))
    with suppress(EnvironmentFault):  # a store that cannot be written costs time, nothing else
        atomic_write_json(memory, {"folder": str(path), "fingerprint": mark})
    return mark


def _incomplete(path: Path, expected: str) -> ModelError:
    return ModelError(
        3204,
        "model folder is incomplete",
        where=str(path),
        expected=f"expected {expected}",
        fix="add the model again",
    )
