"""Conversion: bit for bit what transformers' own GGUF loader gives, and a folder that transformers opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from latentwire.core.console import configure
from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.models import convert as convert_module
from latentwire.models.convert import convert
from latentwire.models.folder import fingerprint
from latentwire.models.weights_file import write_float32

Check = Callable[[Path, Path], None]

SMOLLM2_WEIGHTS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
SMOLLM2_FINGERPRINT = "b49173b54d3542339517cd39efdf40d75530a0b04c680df48eced82eaae53bc6"
"""Frozen: bundles and checkpoints name models by it. The weights were compared with transformers' (below)."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    configure(quiet=True)


def tensors(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


@pytest.mark.parametrize("tied", [True, False])
def test_tiny_weights_are_those_of_transformers(
    make_gguf: Callable[..., Path], tmp_path: Path, tied: bool, assert_same_as_transformers: Check
) -> None:
    gguf, folder = make_gguf(tied=tied), tmp_path / "out"
    folder.mkdir()
    convert(gguf, folder)
    assert_same_as_transformers(gguf, folder)


def test_transformers_opens_the_folder(tiny_gguf: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    convert(tiny_gguf, tmp_path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert next(model.parameters()).dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        tokenizer("the  7", add_special_tokens=False)["input_ids"] == tokenizer.backend_tokenizer.encode("the  7").ids
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0, 0)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 40, 41]])).logits).all()


def test_result_names_sizes_and_hashes(tiny_gguf: Path, tmp_path: Path) -> None:
    files = convert(tiny_gguf, tmp_path)
    assert sorted(files) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert {name: about["bytes"] for name, about in files.items()} == {
        path.name: path.stat().st_size for path in tmp_path.iterdir()
    }
    from latentwire.core.files import sha256_file

    assert all(sha256_file(tmp_path / name) == about["sha256"] for name, about in files.items())


def test_blocks_do_not_change_values(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = convert(tiny_gguf, tmp_path / "a")
    monkeypatch.setattr(convert_module, "BLOCK", 100)
    assert convert(tiny_gguf, tmp_path / "b") == whole


def test_embedded_model_is_frozen(smollm2: Path) -> None:
    record = json.loads((smollm2 / "latentwire.json").read_text())
    assert record["files"]["model.safetensors"]["sha256"] == SMOLLM2_WEIGHTS
    assert record["fingerprint"] == SMOLLM2_FINGERPRINT
    assert fingerprint({name: about["sha256"] for name, about in record["files"].items()}) == SMOLLM2_FINGERPRINT


@pytest.mark.slow
def test_embedded_weights_are_those_of_transformers(
    smollm2: Path, smollm2_gguf: Path, assert_same_as_transformers: Check
) -> None:
    assert_same_as_transformers(smollm2_gguf, smollm2)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"architecture": "bloom"}, "architecture"), ({"pre": "llama-bpe"}, "pre-tokenizer")],
)
def test_unsupported(make_gguf: Callable[..., Path], tmp_path: Path, options: dict[str, str], what: str) -> None:
    with pytest.raises(ModelError) as error:
        convert(make_gguf(**options), tmp_path)
    assert error.value.code == 3203
    assert what in str(error.value)
    assert next(iter(options.values())) in str(error.value)


def test_cut_tensor_data(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-100])
    with pytest.raises(ModelError) as error:
        convert(path, tmp_path)
    assert error.value.code == 3202
    assert "blk.1" in str(error.value)


def test_gguf_package_missing(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(EnvironmentFault) as error:
        convert(tiny_gguf, tmp_path)
    assert error.value.code == 5011
    assert "latentwire[export]" in str(error.value)


def test_writer_notices_missing_and_extra_values(tmp_path: Path) -> None:
    for rows in (1, 3):
        with pytest.raises(ValueError, match="does not fit"):
            write_float32(tmp_path / "a", {"x": (2, 4)}, [np.zeros((rows, 4), np.float32)])


def test_writer_cuts_blocks_anywhere(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32)
    write_float32(tmp_path / "a", {"b": (3, 4), "a": (8,)}, [values[:5], values[5:]])
    found = tensors(tmp_path / "a")
    assert np.array_equal(found["b"], values[:12].reshape(3, 4))
    assert np.array_equal(found["a"], values[12:])
