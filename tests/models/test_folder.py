"""Folders of the user's own: what is read, what is refused, fingerprints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, LatentWireError, ModelError
from latentwire.core.files import sha256_file
from latentwire.models import folder as folder_module
from latentwire.models.convert import convert
from latentwire.models.store import add, home, resolve


@pytest.fixture
def own(tiny_gguf: Path, tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    convert(tiny_gguf, path)
    return path


def refused(path: Path) -> LatentWireError:
    with pytest.raises(LatentWireError) as error:
        resolve(str(path))
    assert str(path) in str(error.value)
    return error.value


def test_folder_by_path(own: Path) -> None:
    model = resolve(str(own))
    assert (model.name, model.path, model.family) == ("my-model", own, "llama")
    assert model.config["hidden_size"] == 64
    assert model.tokenizer_path == own / "tokenizer.json"
    assert add(str(own)) == model
    assert not (own / "latentwire.json").exists()


def test_fingerprint_is_remembered_and_follows_changes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(str(own)).fingerprint
    assert len(list((home() / "fingerprints").iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "sha256_file", lambda *args: pytest.fail("hashed again"))
        assert resolve(str(own)).fingerprint == first
    with (own / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")
    os.utime(own / "model.safetensors", ns=(1, 1))
    changed = resolve(str(own)).fingerprint
    assert changed != first
    assert resolve(str(own), verify=True).fingerprint == changed


def test_unreadable_memory_is_replaced(own: Path) -> None:
    first = resolve(str(own)).fingerprint
    for file in (home() / "fingerprints").iterdir():
        file.write_text("[]")
    assert resolve(str(own)).fingerprint == first


def test_memory_that_cannot_be_written_is_done_without(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, obj: object) -> None:
        raise EnvironmentFault(5005, "cannot write here", where=str(path))

    monkeypatch.setattr(folder_module, "atomic_write_json", refuse)
    assert resolve(str(own)).fingerprint == resolve(str(own)).fingerprint


def test_fingerprint_covers_configuration_tokenizer_and_weights() -> None:
    hashes = {"config.json": "a", "tokenizer.json": "b", "model.safetensors": "c", "tokenizer_config.json": "d"}
    base = folder_module.fingerprint(hashes)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert folder_module.fingerprint({**hashes, name: "x"}) != base
    assert folder_module.fingerprint({**hashes, "tokenizer_config.json": "x"}) == base


def test_sharded_weights(own: Path) -> None:
    (own / "model.safetensors").rename(own / "model-00001-of-00002.safetensors")
    (own / "model-00002-of-00002.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name[:11] for path in resolve(str(own)).weights] == ["model-00001", "model-00002"]
    (own / "model-00002-of-00002.safetensors").unlink()
    assert refused(own).code == 3204


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}'])
def test_bad_index(own: Path, index: str) -> None:
    (own / "model.safetensors.index.json").write_text(index)
    assert refused(own).code == 3204


def test_pickled_weights_are_refused(own: Path) -> None:
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    error = refused(own)
    assert isinstance(error, BundleError)
    assert error.code == 4005
    assert "pytorch_model.bin" in str(error)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files(own: Path, name: str) -> None:
    (own / name).unlink()
    error = refused(own)
    assert (error.code, type(error)) == (3204, ModelError)
    assert name in str(error)


@pytest.mark.parametrize(
    ("config", "code"), [("{", 3204), ("[]", 3203), ("{}", 3203), ('{"model_type": "mamba"}', 3203)]
)
def test_bad_configuration(own: Path, config: str, code: int) -> None:
    (own / "config.json").write_text(config)
    assert refused(own).code == code


def test_changed_byte_is_found_when_asked(own: Path) -> None:
    files = {
        name: {"sha256": sha256_file(own / name), "bytes": (own / name).stat().st_size}
        for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    (own / "latentwire.json").write_text(json.dumps({"files": files, "fingerprint": "f"}))
    assert resolve(str(own), verify=True).fingerprint == "f"
    with (own / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert resolve(str(own)).fingerprint == "f"  # same size: only the full check sees it
    with pytest.raises(ModelError) as error:
        resolve(str(own), verify=True)
    assert error.value.code == 3202
    assert "model.safetensors" in str(error.value)
