"""Real models compiled by TensorRT-RTX: SmolLM2, and Gemma-3-270M in the slow tier. Size and seconds are printed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import LatentWireError
from latentwire.engines.bundle import read_bundle
from latentwire.export.decoder import build_decoder
from latentwire.export.families import read_config
from latentwire.export.graph import save
from latentwire.export.plan import Job, write_plan
from latentwire.export.precision import precision
from latentwire.export.target import Target
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import WeightReader
from latentwire.models.folder import ModelFolder
from latentwire.models.store import resolve

pytestmark = pytest.mark.trt
GPUS = ("sm_89", "sm_120")
CAPACITY, BATCH, LENGTH = 256, 64, 128


def compile_decoder(llm: ModelFolder, folder: Path, form: str) -> Any:
    """Decoder graph and plan in ``folder``; returns the plan's entry."""
    config, p = read_config(llm.config, str(llm.path)), precision(form)
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(folder / "decoder.safetensors", reader, config, p)
    save(build_decoder(config, layout, p, "dual", CAPACITY), folder / "decoder.onnx")
    target = Target("tensorrt-rtx", p, "dual", CAPACITY, BATCH, LENGTH, GPUS)
    info = write_plan(Job("decoder", folder, target, config, 512, 32, 4))
    size = (folder / "decoder.plan").stat().st_size
    print(f"{llm.name} {form}: {size / 1e6:.0f} MB, {info.seconds} s, {info.audit}")
    assert info.audit["kv_cache_updates"] == 2 * config.num_layers
    assert info.audit["attentions"] == config.num_layers
    assert info.audit["warnings"] == []
    weights = (folder / "decoder.safetensors").stat().st_size
    assert 0.9 * weights < size < 1.3 * weights, "the plan holds every weight once"
    return info


def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """Both profiles for two generations of GPUs; 2 x 30 cache updates, 30 fused attentions."""
    info = compile_decoder(resolve("smollm2-135m"), tmp_path, "fp16")
    assert (info.audit["kv_cache_updates"], info.audit["attentions"]) == (60, 30)


@pytest.mark.slow
def test_smollm2_bfloat16(smollm2: Path, tmp_path: Path) -> None:
    compile_decoder(resolve("smollm2-135m"), tmp_path, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_gemma(form: str, tmp_path: Path) -> None:
    """Head size 256, one key head, 18 layers; only where its terms were accepted before."""
    try:
        llm = resolve("gemma-3-270m")
    except LatentWireError as e:
        pytest.skip(f"Gemma-3-270M is not in the store: {e}")
    compile_decoder(llm, tmp_path, form)


@pytest.mark.slow
def test_the_other_parts(smollm2_bundle: Path, tmp_path: Path) -> None:
    """Encoder, adapter and splice of the shipped checkpoint, float32."""
    folder = tmp_path / "bundle"
    shutil.copytree(smollm2_bundle, folder)
    m = read_bundle(folder, verify="size").manifest
    target = Target("tensorrt-rtx", precision("fp16"), "dual", CAPACITY, BATCH, LENGTH, ("sm_89",))
    for part in ("encoder", "adapter", "splice"):
        job = Job(part, folder, target, m.llm, m.encoder.max_tokens, m.encoder.latents, m.adapter.task_tokens)
        info = write_plan(job)
        size = (folder / info.file).stat().st_size
        print(f"{part}: {size / 1e6:.0f} MB, {info.seconds} s, {info.audit}")
        assert info.audit["weights"] > 0
