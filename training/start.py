"""The closed-form start: what is known before the first step.

A random encoder and a random adapter leave a frozen LLM reading noise, and it learns the answer format long before
it learns to read. Here the first latents already name each span's most telling token, and the lookup adapter
already reads them; the paths that must be learned start at zero beside that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .adapter import Adapter, LearnedAdapter
from .encoder import EncoderFromEmbedLayer
from .llm import LMWrapper
from .pooling import unit

TASK_WORDS = {
    "answer": "\nShort answer from the text above.",
    "reconstruct": "\nRepeat the text above word for word.",
    "continue": "\nGo on where the text above ends.",
}
"""Words whose embeddings the task rows start from."""


def principal(table: Tensor, rank: int, whiten: bool = False) -> tuple[Tensor, Tensor]:
    """Mean [H] and the ``rank`` leading principal directions [rank,H] of a table [V,H], in float64.

    ``whiten``: each divided by the deviation along it, so that rows of the table become nearly orthogonal.
    """
    x = table.double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    leading = values.argsort(descending=True)[:rank]
    directions = vectors[:, leading].T
    if whiten:
        directions = directions * (len(x) / values[leading].clamp(min=1e-9)).sqrt()[:, None]
    return mean.float(), directions.float().contiguous()


def inverse_document_frequency(documents: Iterable[Sequence[int]], vocab: int) -> Tensor:
    """f32 [V], ``log((1 + N) / (1 + df))``: 0 for a token that every document holds."""
    df = torch.zeros(vocab)
    count = 0
    for ids in documents:
        df[torch.tensor(sorted(set(ids)), dtype=torch.int64)] += 1
        count += 1
    return torch.log((1 + count) / (1 + df))


@torch.no_grad()
def start_encoder(encoder: EncoderFromEmbedLayer, llm: LMWrapper, idf: Tensor) -> None:
    """Copy the LLM's first layers and set the projection to its principal directions.

    Where a latent names several tokens, their keys must not look alike: by the plain directions common tokens are
    mistaken for others when a second key lies over theirs, by whitened ones hardly any.
    """
    table = llm.embedding.cpu()
    set_embedding(encoder, table)
    mean, directions = principal(table, encoder.projection.out_features, whiten=encoder.places > 1)
    encoder.get_buffer("mean").copy_(mean)
    encoder.get_buffer("idf").copy_(idf)
    encoder.projection.weight.copy_(directions)
    source = llm.model.model.layers
    for own, theirs in zip(encoder.layers, source, strict=False):
        own.load_state_dict({k: v.float() for k, v in theirs.state_dict().items()})


@torch.no_grad()
def token_keys(encoder: EncoderFromEmbedLayer, embeddings: Tensor) -> Tensor:
    """f32 [N,d_z], unit keys of tokens with embeddings f32 [N,H], by the encoder's own projection."""
    projection, mean = encoder.projection.weight.detach().cpu(), encoder.get_buffer("mean").cpu()
    return unit((embeddings - mean) @ projection.T)


def set_embedding(encoder: nn.Module, table: Tensor) -> None:
    """Give an encoder its frozen token table (fp16, not part of its checkpoint)."""
    encoder.get_buffer("embedding").copy_(table.half())


@torch.no_grad()
def start_keys(adapter: LearnedAdapter, projection: nn.Module, mean: Tensor) -> None:
    """Keys = the encoder's own projection of this LLM's vocabulary."""
    adapter.mean.copy_(mean)
    adapter.key.load_state_dict(projection.state_dict())


@torch.no_grad()
def start_rows(adapter: Adapter | LearnedAdapter, llm: LMWrapper, table: Tensor, tasks: Sequence[str]) -> None:
    """Task rows = embeddings of plain words; the linear adapter's scale = the RMS of the LLM's table f32 [V,H]."""
    if isinstance(adapter, Adapter):
        adapter.scale.fill_(float(table.square().mean().sqrt()))
    count = adapter.task.weight.shape[0] // len(tasks)
    for number, task in enumerate(tasks):
        ids = llm.encode(TASK_WORDS[task])
        chosen = torch.tensor([ids[i % len(ids)] for i in range(count)])
        adapter.task.weight[number * count : (number + 1) * count] = table[chosen]
