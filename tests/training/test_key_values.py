"""One frozen LLM called in parts: a cache goes on where it stood, and sliding layers read their window only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from latentwire.training.llm import KeyValues, LMWrapper

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sliding(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> LMWrapper:
    """A random Gemma 3 whose first layer reads 6 positions back, its second everything."""
    folder = tmp_path_factory.mktemp("tiny-gemma")
    Tokenizer.from_file(str(tiny_llm / "tokenizer.json")).save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return LMWrapper(str(folder), torch.float32, CPU)


def causal(new: int, before: int = 0) -> torch.Tensor:
    return torch.ones(before + new, before + new, dtype=torch.bool).tril()[None, None, before:]


def test_a_sliding_layer_reads_its_window_only(sliding: LMWrapper) -> None:
    ids = torch.arange(40, 60)[None]
    embeds = sliding.model.get_input_embeddings()(ids)
    ours = sliding.logits(sliding.hidden(embeds, causal(20), torch.arange(20)[None])[0])
    torch.testing.assert_close(ours, sliding.model(ids).logits[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["tiny", "sliding"])
def test_a_cache_goes_on_where_it_stood(which: str, sliding: LMWrapper, tiny_llm: Path) -> None:
    llm = sliding if which == "sliding" else LMWrapper(str(tiny_llm), torch.float32, CPU)
    embeds = llm.model.get_input_embeddings()(torch.arange(40, 60)[None])
    whole = llm.hidden(embeds, causal(20), torch.arange(20)[None])
    cache = KeyValues()
    parts = []
    for start, end in ((0, 9), (9, 17), (17, 20)):
        positions = torch.arange(start, end)[None]
        parts.append(llm.hidden(embeds[:, start:end], causal(end - start, start), positions, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
