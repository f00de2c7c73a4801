"""The splice graph against plain indexing, and Gemma's scaled embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latentwire.core.errors import LatentError
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.models.folder import ModelFolder


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_tokens_and_rows_in_their_places(
    kind: str, tiny: Callable[[str], ModelFolder], tiny_decoder: Callable[[str], Bundle]
) -> None:
    """Tokens as transformers' embedding module returns them; adapter rows untouched."""
    import torch
    from transformers import AutoModelForCausalLM

    engine = OrtCpuEngine(tiny_decoder(kind), threads=1)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 258, (3, 11))
    row_index = np.where(rng.random((3, 11)) < 0.4, rng.integers(0, 6, (3, 11)), -1)
    rows = rng.standard_normal((3, 6, 48)).astype(np.float32)
    found = engine.splice(ids, row_index, rows)

    module = AutoModelForCausalLM.from_pretrained(tiny(kind).path, dtype=torch.float32).get_input_embeddings()
    tokens = module(torch.tensor(ids)).detach().numpy()
    picked = np.stack([rows[b][row_index[b]] for b in range(3)])
    want = np.where(row_index[..., None] >= 0, picked, tokens)
    np.testing.assert_array_equal(found, want)


def test_next_embeds_are_the_tokens_own(tiny_decoder: Callable[[str], Bundle]) -> None:
    """What the decoder hands to its next step is what splice makes of that token, scale included."""
    for kind in ("llama", "gemma3"):
        engine = OrtCpuEngine(tiny_decoder(kind), threads=1)
        none = np.full((2, 4), -1, np.int64)
        embeds = engine.splice(np.array([[256, 1, 2, 3], [256, 9, 8, 7]]), none, np.zeros((2, 1, 48), np.float32))
        buffers = engine.alloc(2, 8)
        engine.prefill(buffers, embeds, np.array([4, 4]))
        again = engine.splice(buffers.next_token[:, None], none[:, :1], np.zeros((2, 1, 48), np.float32))
        np.testing.assert_array_equal(buffers.next_embeds, again)


@pytest.mark.parametrize(
    ("ids", "row_index", "name"),
    [
        ([[258]], [[-1]], "input_ids"),
        ([[-1]], [[-1]], "input_ids"),
        ([[0]], [[6]], "row_index"),
        ([[0]], [[-2]], "row_index"),
    ],
)
def test_index_outside_its_table(
    ids: list[list[int]], row_index: list[list[int]], name: str, tiny_decoder: Callable[[str], Bundle]
) -> None:
    engine = OrtCpuEngine(tiny_decoder("llama"), threads=1)
    with pytest.raises(LatentError) as caught:
        engine.splice(np.array(ids), np.array(row_index), np.zeros((1, 6, 48), np.float32))
    assert (caught.value.code, caught.value.where) == (3002, f"tensor {name}")
