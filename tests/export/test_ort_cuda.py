"""ONNX Runtime on a real GPU: same tokens as on the CPU, with and without CUDA graphs, and lack of memory by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latentwire.core.errors import EnvironmentFault
from latentwire.engines.available import CHECKS, tried
from latentwire.engines.base import Engine
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.ort_cuda import OrtCudaEngine
from latentwire.engines.torch_ref import TorchRefEngine
from latentwire.export.drive import embed, greedy, lengths_of

pytestmark = pytest.mark.gpu
Prompts = list[list[int]]


@pytest.fixture(autouse=True)
def _provider() -> None:
    found = tried("ort-cuda", *CHECKS["ort-cuda"])
    if not found.works:
        pytest.skip(found.detail)


@pytest.mark.parametrize("kind", ["llama", "llama-3.1", "qwen2", "gemma3"])
def test_equals_the_cpu(kind: str, tiny_decoder: Callable[[str], Bundle], byte_prompts: Prompts) -> None:
    """Float32: logits within 1e-3 after prefill and 20 steps; tokens equal."""
    engines: list[Engine] = [OrtCpuEngine(tiny_decoder(kind)), OrtCudaEngine(tiny_decoder(kind))]
    tokens = [greedy(engine, byte_prompts[:8], 20) for engine in engines]
    assert tokens[0].tolist() == tokens[1].tolist()
    logits = []
    for engine in engines:
        buffers = engine.alloc(8, 64)
        engine.prefill(buffers, embed(engine, byte_prompts[:8]), lengths_of(byte_prompts[:8]))
        logits.append(np.array(buffers.logits))
    difference = np.abs(logits[0] - logits[1])
    print(f"{kind}: logits max {difference.max():.2g}, mean {difference.mean():.2g}")
    assert difference.max() < 1e-3


@pytest.mark.parametrize("flavour", ["dual", "mask", "gqa"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_change_nothing(
    precision: str, flavour: str, precise: Callable[..., Bundle], byte_prompts: Prompts
) -> None:
    """Two batches in turn, so that one's recording is replayed after the other's; and close to torch-ref."""
    bundle = precise("llama-3.1", precision, flavour)
    plain, graphs = OrtCudaEngine(bundle, graphs=False), OrtCudaEngine(bundle)
    want = [greedy(plain, prompts, 12).tolist() for prompts in (byte_prompts[:8], byte_prompts[8:11])]
    for _ in range(2):
        assert [greedy(graphs, prompts, 12).tolist() for prompts in (byte_prompts[:8], byte_prompts[8:11])] == want
    reference = greedy(TorchRefEngine(bundle), byte_prompts[:8], 1)[:, 0]
    agreement = float(np.mean(np.array(want[0])[:, 0] == reference))
    print(f"{precision} {flavour}: CUDA graphs {graphs.graphs}, first token as torch-ref {agreement:.0%}")
    assert agreement >= 0.75  # random weights: margins are small


def test_5003_memory_that_no_gpu_has(precise: Callable[..., Bundle]) -> None:
    engine = OrtCudaEngine(precise("llama-3.1", "fp16"))
    with pytest.raises(EnvironmentFault) as caught:
        engine.place.empty(1 << 46)
    assert caught.value.code == 5003
