"""Calibrated activation scales: ModelOpt's measurement against our own, and what they do to the logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.drive import prefilled
from latentwire.export.families import read_config
from latentwire.export.fp8 import calibrate, read_scales
from latentwire.models.folder import ModelFolder

HAVE = importlib.util.find_spec("modelopt") is not None


@pytest.mark.skipif(HAVE, reason="ModelOpt is installed")
def test_without_modelopt(tiny: Callable[[str], ModelFolder]) -> None:
    with pytest.raises(EnvironmentFault, match=r"modelopt.*latentwire\[fp8\]") as caught:
        calibrate(tiny("llama"))
    assert caught.value.code == 5011


def quantiser_names(tiny: Callable[[str], ModelFolder], kind: str = "llama") -> dict[str, float]:
    """As ModelOpt lists them for Llama-like models."""
    parts = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    layers = range(tiny(kind).config["num_hidden_layers"])
    return {f"model.layers.{i}.{p}.input_quantizer": 4.48 * (i + 1) for i in layers for p in parts}


def test_names_of_modules_become_names_of_the_graph(tiny: Callable[[str], ModelFolder]) -> None:
    config = read_config(tiny("llama").config, "config.json")
    scales = read_scales(config, quantiser_names(tiny))
    wanted = {f"layer.{i}.{n}" for i in range(3) for n in ("q", "k", "v", "o", "gate", "up", "down")}
    assert set(scales) == wanted
    assert scales["layer.2.down"] == pytest.approx(0.03)


@pytest.mark.parametrize("value", [None, 0.0, float("nan"), float("inf")])
def test_input_that_was_never_seen(value: float | None, tiny: Callable[[str], ModelFolder]) -> None:
    config, largest = read_config(tiny("llama").config, "config.json"), quantiser_names(tiny)
    name = "model.layers.1.mlp.up_proj.input_quantizer"
    del largest[name]
    if value is not None:
        largest[name] = value
    with pytest.raises(ModelError, match=name) as caught:
        read_scales(config, largest)
    assert caught.value.code == 3206


@pytest.mark.skipif(not HAVE, reason="nvidia-modelopt is not installed")
@pytest.mark.parametrize("kind", ["llama-tied", "qwen2", "gemma3"])
def test_modelopt_sees_what_we_see(
    kind: str,
    tmp_path: Path,
    tiny: Callable[[str], ModelFolder],
    precise: Callable[..., Bundle],
    make_precise: Callable[..., Bundle],
    byte_prompts: list[list[int]],
) -> None:
    """Largest inputs as hooks of our own find them; a decoder with these scales stays near the float16 one."""
    import torch
    from transformers import AutoModelForCausalLM

    llm, prompts = tiny(kind), [p[:9] for p in byte_prompts if len(p) >= 9]
    scales = calibrate(llm, prompts)
    model = AutoModelForCausalLM.from_pretrained(llm.path, dtype=torch.float32)
    seen: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(f"{name}.input_quantizer"))
    with torch.no_grad():
        model(torch.tensor(prompts))
    want = read_scales(read_config(llm.config, "config.json"), seen)
    assert scales == pytest.approx(want, rel=1e-4)

    made = make_precise(tmp_path / "fp8", llm, "fp8", "dual", "C", scales)
    both = (precise(kind, "fp16"), made)
    half, narrow = (prefilled(OrtCpuEngine(b, threads=1), prompts, 1).logits for b in both)
    apart = np.linalg.norm(narrow - half) / np.linalg.norm(half)
    print(f"{kind}: fp8 {apart:.3f} of the logits' length from fp16")
    assert apart < 0.25
