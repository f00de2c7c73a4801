"""Decoders whose layers read latents compute what the trained module computes; without latents they are the LLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentwire.core.errors import BundleError, LatentError, ModelError
from latentwire.engines.base import F32, Engine
from latentwire.engines.bundle import Bundle
from latentwire.engines.cross import cross_inputs, given_to
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.specs import bundle_specs
from latentwire.engines.torch_ref import TorchRefEngine
from latentwire.export.cross import cross_weights, write_cross
from latentwire.export.decoder import build_decoder
from latentwire.export.drive import continued, embed, greedy, lengths_of
from latentwire.export.external import read_layout
from latentwire.export.families import read_config
from latentwire.export.findings import ParityError
from latentwire.export.gate_cross import reading
from latentwire.export.gate_same import GATES, sample
from latentwire.export.graph import save
from latentwire.export.precision import PRECISIONS
from latentwire.models.folder import ModelFolder
from latentwire.training.config import Config
from latentwire.training.features.latent_adapters import LatentAdapters
from latentwire.training.features.options import LatentAdaptersOptions
from latentwire.training.llm import LMWrapper

D_Z = 6
STEPS = 5
Tiny = Callable[[str], ModelFolder]
Decoder = Callable[[str], Bundle]


def _module(llm: LMWrapper) -> LatentAdapters:
    """With weights that are halves already, as published ones are, and an open gate."""
    config = Config(d_z=D_Z, latent_adapters=LatentAdaptersOptions(rank=8, heads=2, layers=(0, 2)))
    torch.manual_seed(11)
    feature = LatentAdapters(config, llm)
    torch.nn.init.normal_(feature.gate)
    with torch.no_grad():
        for parameter in feature.parameters():
            parameter.copy_(parameter.half())
    return feature


def _bundle(plain: Bundle, llm: ModelFolder, feature: LatentAdapters, precision: str = "fp32") -> Bundle:
    """A decoder like ``plain``, beside its files, whose layers read latents."""
    folder = plain.path
    path = folder / "latent_adapters.safetensors"
    save_file({name: tensor.half() for name, tensor in feature.state_dict().items()}, path)
    config = read_config(llm.config, "config.json")
    weights = cross_weights(path, feature.facts(), D_Z, config.hidden_size, config.num_layers)
    form, layout = PRECISIONS[precision], read_layout(folder / "decoder.safetensors")
    save(build_decoder(config, layout, form, cross=weights), folder / "decoder.onnx")
    write_cross(weights, folder)
    m = plain.manifest
    graphs = bundle_specs(m.llm, D_Z, m.llm.dtype, cross=weights.spec)
    names = dict.fromkeys([*m.files, "cross.onnx", path.name], next(iter(m.files.values())))
    return replace(plain, manifest=replace(m, graphs=graphs, files=names))


@pytest.fixture(params=["llama", "qwen2", "gemma3"])
def kind(request: pytest.FixtureRequest) -> str:
    """A family."""
    found: str = request.param
    return found


@pytest.fixture
def crossed(kind: str, tiny: Tiny, make_decoder: Callable[..., Bundle], tmp_path: Path) -> Any:
    """Wrapped LLM, module, and bundle."""
    llm = LMWrapper(str(tiny(kind).path), torch.float32, torch.device("cpu"))
    feature = _module(llm)
    return llm, feature, _bundle(make_decoder(tmp_path / "bundle", tiny(kind)), tiny(kind), feature)


def _latents(*counts: int) -> F32:
    z = np.random.default_rng(5).standard_normal((len(counts), 4, D_Z)).astype(np.float32)
    z[np.arange(4) >= np.array(counts)[:, None]] = 0
    return z


def _trained(llm: LMWrapper, feature: LatentAdapters, prompts: list[list[int]], z: F32) -> tuple[F32, list[list[int]]]:
    """Logits after each prompt and greedy tokens, each from a pass over everything before it; rows one by one."""
    logits, tokens = [], []
    for prompt, latents in zip(prompts, z, strict=True):
        own, first = list(prompt), None
        for _ in range(STEPS):
            embeds = llm.model.get_input_embeddings()(torch.tensor([own]))
            mask = torch.ones(len(own), len(own), dtype=torch.bool).tril()[None, None]
            with torch.no_grad(), feature.active(torch.from_numpy(latents)[None]):
                scores = llm.logits(llm.hidden(embeds, mask, torch.arange(len(own))[None])[:, -1])
            first = scores if first is None else first
            own.append(int(scores.argmax()))
        assert first is not None
        logits.append(first.numpy())
        tokens.append(own[len(prompt) :])
    return np.concatenate(logits), tokens


def _answered(engine: Engine, prompts: list[list[int]], z: F32) -> tuple[F32, list[list[int]]]:
    buffers = engine.alloc(len(prompts), max(map(len, prompts)) + STEPS)
    buffers.cross = engine.cross(z)
    engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
    logits = np.array(buffers.logits)
    return logits, continued(engine, buffers, STEPS).tolist()


@pytest.mark.parametrize("make", [OrtCpuEngine, TorchRefEngine], ids=["ort-cpu", "torch-ref"])
def test_a_bundle_answers_as_the_trained_module(
    crossed: Any, kind: str, make: Callable[..., Engine], byte_prompts: list[list[int]]
) -> None:
    """A ragged batch, in which one row has no latents and one has fewer; logits, and tokens from the cache."""
    llm, feature, bundle = crossed
    prompts, z = byte_prompts[:3], _latents(4, 0, 2)
    want, tokens = _trained(llm, feature, prompts, z)
    engine = make(bundle, threads=1)
    have, found = _answered(engine, prompts, z)
    error = float(np.abs(have - want).max())
    moved = float(np.abs(have - _answered(engine, prompts, np.zeros_like(z))[0])[[0, 2]].max())
    print(f"{kind}, {engine.name}: logits at most {error:.1e} apart, moved by the latents by {moved:.2f}")
    assert error < 1e-3
    assert moved > 0.1
    assert found == tokens


def test_without_latents_it_is_the_llm(
    crossed: Any, kind: str, tiny_decoder: Decoder, byte_prompts: list[list[int]]
) -> None:
    """No ``cross`` given, or rows without latents: bit for bit the decoder without these nodes."""
    bundle, prompts = crossed[2], byte_prompts[:6]
    plain, engine = OrtCpuEngine(tiny_decoder(kind), threads=1), OrtCpuEngine(bundle, threads=1)
    want = greedy(plain, prompts, STEPS)
    np.testing.assert_array_equal(greedy(engine, prompts, STEPS), want)
    logits, tokens = _answered(engine, prompts, np.zeros((6, 3, D_Z), np.float32))
    np.testing.assert_array_equal(tokens, want)
    buffers = plain.alloc(6, 64)
    plain.prefill(buffers, embed(plain, prompts), lengths_of(prompts))
    np.testing.assert_allclose(logits, buffers.logits, rtol=0, atol=1e-5)


def test_the_gates_hold_with_latents(crossed: Any, kind: str, byte_prompts: list[list[int]]) -> None:
    """Batch, padding, steps, reuse, refill, cache."""
    engine = OrtCpuEngine(crossed[2], threads=1)
    few = sample(byte_prompts, 1e-4)
    for name, gate in GATES.items():
        finding = gate(reading(engine), few)
        print(kind, finding)
        assert finding.verdict == "passed", name
    assert reading(engine) is not engine


def test_a_gate_fails_where_rows_share_latents(
    crossed: Any, byte_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OrtCpuEngine(crossed[2], threads=1)
    own = engine.cross

    def mixed(z: F32) -> Any:
        return {name: np.repeat(array[:1], len(array), axis=0) for name, array in own(z).items()}

    monkeypatch.setattr(engine, "cross", mixed)
    with pytest.raises(ParityError):
        GATES["batch"](reading(engine), sample(byte_prompts, 1e-4))


def test_what_was_made_for_another_batch_is_refused(crossed: Any, byte_prompts: list[list[int]]) -> None:
    engine = OrtCpuEngine(crossed[2], threads=1)
    buffers = engine.alloc(2, 64)
    buffers.cross = engine.cross(_latents(1, 2, 3))
    with pytest.raises(LatentError, match="cross_k") as caught:
        engine.prefill(buffers, embed(engine, byte_prompts[:2]), lengths_of(byte_prompts[:2]))
    assert caught.value.code == 3002
    with pytest.raises(LatentError) as caught:
        engine.cross(np.full((1, 2, D_Z), np.nan, np.float32))
    assert caught.value.code == 3001


def test_a_bundle_without_it(tiny_decoder: Decoder) -> None:
    engine = OrtCpuEngine(tiny_decoder("llama"), threads=1)
    assert cross_inputs(engine.bundle.manifest) == ()
    assert given_to((), {}, 3) == {}
    assert reading(engine) is engine
    with pytest.raises(BundleError, match="no layer") as caught:
        engine.cross(_latents(1))
    assert caught.value.code == 4008


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    good = {"query": (1, 8, 4), "key": (1, D_Z, 4), "value": (1, D_Z, 4), "out": (1, 4, 8), "gate": (1, 4)}
    save_file({name: torch.ones(shape) for name, shape in good.items()}, path)
    assert cross_weights(path, {"layers": [1], "heads": 2}, D_Z, 8, 2).rank == 4
    for facts, d_z, hidden, depth, word in (
        ({"layers": [0, 1], "heads": 2}, D_Z, 8, 2, "query"),
        ({"layers": [1], "heads": 3}, D_Z, 8, 2, "heads"),
        ({"layers": [1]}, D_Z, 8, 2, "heads"),
        ({"layers": [2], "heads": 2}, D_Z, 8, 2, "layers from 0 to 1"),
        ({"layers": [1], "heads": 2}, 7, 8, 2, "key"),
        ({"layers": [1], "heads": 2}, D_Z, 9, 2, "query"),
    ):
        with pytest.raises(ModelError, match=word) as caught:
            cross_weights(path, facts, d_z, hidden, depth)
        assert caught.value.code == 3223
