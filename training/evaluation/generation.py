"""Greedy answers of all branches of a tree at once, behind a forward pass that already scored them.

The context stands once in the cache and its questions share it, as in training's trees: a step feeds one new token
of every question of every row.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..injection import Injection
from ..llm import KeyValues, LMWrapper
from ..tree import IGNORE, Tree


@torch.no_grad()
def continue_greedily(
    llm: LMWrapper, tree: Tree, given: Injection, cache: KeyValues, first: Tensor, most: int
) -> list[str]:
    """Text up to the first end or line break, for each branch in row order.

    Args:
        llm: the LLM that scored ``tree`` into ``cache``.
        tree: prompts with their gold targets; the targets are hidden from what is generated.
        given: what ``tree`` reads beside tokens.
        cache: grows by the new tokens.
        first: int64 [N], first token of each branch, in row order.
        most: at most this many tokens a branch.
    """
    device = tree.ids.device
    starts = ((tree.rank == 0) & (tree.labels != IGNORE)).cpu()
    counts = starts.sum(1).tolist()
    width = max(counts)
    slot = torch.zeros(len(counts), width, dtype=torch.bool)
    for row, count in enumerate(counts):
        slot[row, :count] = True
    real = slot.to(device)
    positions = torch.zeros(len(counts), width, dtype=torch.int64, device=device)
    positions[real] = tree.positions[starts.to(device)]
    tokens = torch.zeros_like(positions)
    tokens[real] = first
    ends = torch.tensor(sorted({*llm.special.eos, *newlines(llm.tokenizer)}), device=device)
    own = torch.arange(1, width + 1, device=device)[None].expand(len(counts), -1)
    target = (tree.labels != IGNORE) & (tree.rank >= 1)
    keys = torch.where(target, -1, tree.branch)
    done = ~real
    out = [tokens]
    for _ in range(most - 1):
        done = done | torch.isin(tokens, ends)
        if bool(done.all()):
            break
        positions = positions + 1
        keys = torch.cat([keys, own], dim=1)
        seen = (keys[:, None, :] == 0) | (keys[:, None, :] == own[:, :, None])
        embeds = llm.splice(tokens, torch.full_like(tokens, -1), given.rows)
        with given.active():
            hidden = llm.hidden(embeds, seen[:, None], positions, cache)
        tokens = llm.logits(hidden.flatten(0, 1)).argmax(-1).view_as(tokens)
        out.append(tokens)
    ids = torch.stack(out, dim=-1)[real].tolist()
    return [_text(llm, answer) for answer in ids]


def _text(llm: LMWrapper, ids: list[int]) -> str:
    kept = next((ids[:i] for i, token in enumerate(ids) if token in llm.special.eos), ids)
    text: str = llm.tokenizer.decode(kept)
    return text.split("\n")[0].strip()


@lru_cache(maxsize=8)
def newlines(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of tokens with a line break in them, behind which nothing of an answer is read."""
    texts = tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())], skip_special_tokens=False)
    return tuple(i for i, text in enumerate(texts) if "\n" in text)
