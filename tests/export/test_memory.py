"""Exports need memory for a block of weights, not for the model: measured in child processes.

The models are shapes without content, of several sizes: shards of zeros that take no room on the disk.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.engines.byte_tokenizer import byte_tokenizer
from latentwire.export.families import read_config
from latentwire.export.weights import sources

MB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: list[dict[str, Any]] = [
    LLAMA
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
    }
    for layers, vocab in ((1, 8192), (4, 16384), (10, 32768))
]
LLAMA_8B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}


def make_shape(folder: Path, config: dict[str, Any], shards: int) -> int:
    """A model folder of bfloat16 zeros in sparse files; returns its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(), ensure_ascii=False), encoding="utf-8")
    wanted = sources(read_config(config, "config.json")).values()
    shapes = {s.key if s.key.startswith("lm_head.") else f"model.{s.key}": s.shape for s in wanted}
    index: dict[str, str] = {}
    for number in range(shards):
        file, at = f"model-{number + 1:05}-of-{shards:05}.safetensors", 0
        entries: dict[str, Any] = {}
        for name in sorted(shapes)[number::shards]:
            size = 2 * int(np.prod(shapes[name]))
            entries[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + size]}
            at, index[name] = at + size, file
        header = json.dumps(entries).encode()
        with (folder / file).open("wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return 2 * sum(int(np.prod(shape)) for shape in shapes.values())


def measure(model: Path, out: Path, precision: str) -> dict[str, float]:
    """What ``memory_child`` reports; the files it wrote are removed."""
    out.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("memory_child.py")), str(model), str(out), precision]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout)
    finally:
        shutil.rmtree(out)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shapes")
    for number, config in enumerate(SHAPES):
        make_shape(folder / str(number), config, shards=3)
    return [folder / str(number) for number in range(len(SHAPES))]


@pytest.mark.parametrize(
    "precision",
    ["fp16", "w8", pytest.param("fp32", marks=pytest.mark.slow), pytest.param("w4", marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_the_model(precision: str, models: list[Path], tmp_path: Path) -> None:
    """Peak memory above the start against bytes written: slope at most 0.3, and never more than a few blocks.

    int8 is not among them: it is calibrated, that is run, before it is written.
    """
    found = [measure(model, tmp_path / "out", precision) for model in models]
    written = np.array([f["bytes"] for f in found]) / MB
    for peak in ("export", "check"):
        needed = np.array([f[peak] for f in found]) / MB
        slope = np.polyfit(written, needed, 1)[0]
        print(f"{precision} {peak}: {written.round()} MB written, {needed.round()} MB needed, slope {slope:.3f}")
        assert slope <= 0.3
        assert needed.max() <= 400


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk with room for the 8B shape; emptied afterwards."""
    if shutil.disk_usage(tmp_path).free < 30e9:
        pytest.skip("needs 30 GB of disk")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_llama_8b_shape(room: Path) -> None:
    """The real shape: 16 GB of weights, less than 1 GB of memory."""
    size = make_shape(room / "model", LLAMA_8B, shards=4)
    assert size == 2 * 8_030_261_248
    found = measure(room / "model", room / "out", "fp16")
    print({name: f"{value:.5g}" for name, value in found.items()})
    assert found["bytes"] >= size
    assert max(found["export"], found["check"]) <= 1e9
