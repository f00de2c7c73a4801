"""A tiny Llama with a byte-level tokenizer of its own, and data that fits it: seconds instead of minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from latentwire.training.config import Config

MakeConfig = Callable[..., Config]

QUESTION = "What is told?"
"""One question for all stories, so that only the text can tell the answers apart."""

STORIES = [
    ("Mira keeps 14 red goats on the island of Sorra. The boat comes on Fridays.", "14"),
    ("The bridge at Tolmin was built by Anton Kovac in 1887. It is made of stone.", "Anton Kovac"),
    ("Every spring the village of Brenna sells honey to traders from Oslo.", "honey"),
    ("Captain Ruiz lost the map near Cape Dorn, but the crew found water there.", "Cape Dorn"),
    ("A library in Perth lends violins. Members may keep one for six weeks.", "violins"),
    ("The comet was seen by Ines Valdo from the roof of her school in Quito.", "Ines Valdo"),
    ("Doctor Hale planted 300 pines above the lake to hold the soil in place.", "300"),
    ("Trains to Varda leave at noon. The night train carries mail and fish.", "mail and fish"),
]


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: random Llama, 2 layers, hidden size 32, vocabulary 384."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(row) for row in STORIES], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    _teach(model, tokenizer)
    model.save_pretrained(folder)
    return folder


def _teach(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Until it answers from the text: a random network has no language that latents could speak to."""
    rows = [[0, *tokenizer.encode(f"{c}\nQuestion: {QUESTION}\nAnswer: {a}").ids, 1] for c, a in STORIES]
    size = max(map(len, rows))
    ids = torch.tensor([row + [1] * (size - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (size - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM of another family: a random Gemma 3, hidden size 24, vocabulary 320 with other merges, untrained."""
    folder = tmp_path_factory.mktemp("tiny-gemma")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<eos>", "<bos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([context.lower() for context, _ in STORIES], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(4)
    config = Gemma3TextConfig(
        vocab_size=320,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        sliding_window=512,
        max_position_embeddings=512,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def story_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in the project's format."""
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    rows = [{"id": f"s{i}", "context": c, "question": QUESTION, "answers": [a]} for i, (c, a) in enumerate(STORIES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages in the project's format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("data") / "prose.parquet"
    pq.write_table(pa.table({"text": [row[0] + " " + STORIES[i - 1][0] for i, row in enumerate(STORIES)]}), path)
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_llm: Path, story_file: Path) -> MakeConfig:
    """``tiny_config(**changes)``: a run of seconds on the tiny model and the stories."""
    base = Config(
        encoder_llm=str(tiny_llm),
        llms=(str(tiny_llm),),
        data=(str(story_file),),
        eval_data=(str(story_file),),
        latent_len=8,
        d_z=16,
        encoder_layers=1,
        lookup_top=4,
        mlp_hidden=32,
        task_tokens=2,
        batch=4,
        micro_batch=4,
        format_steps=1,
        steps=4,
        eval_questions=4,
        precision="fp32",
        device="cpu",
    )
    return lambda **changes: replace(base, **changes)


@pytest.fixture(scope="session")
def make(tiny_config: MakeConfig, prose_file: Path) -> MakeConfig:
    """The same with prose beside the questions, two micro-batches a step, and checkpoints on the way."""
    more = {"prose": (str(prose_file),), "batch": 8, "format_steps": 2, "steps": 6, "save_every": 2, "eval_every": 3}
    return lambda **changes: tiny_config(**(more | changes))
