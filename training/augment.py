"""How keys and values of latents reach a frozen LLM: before it reads a tree, or once it has read the tree's context."""

from __future__ import annotations

import torch
from torch import Tensor

from .features.slots import Slots
from .llm import KeyValues, LMWrapper, either
from .rotary import Rotary
from .tree import Tree


def read_before(llm: LMWrapper, tree: Tree, embeds: Tensor, slots: Slots, cache: KeyValues | None) -> Tensor:
    """Last hidden states f[B,S,H] of a tree that reads slots of their own behind BOS.

    Args:
        llm: reads.
        tree: its positions as if there were no slots.
        embeds: f[B,S,H].
        slots: with ``onto`` false.
        cache: empty; gains slots and tree.
    """
    cache, start = cache or KeyValues(), len(llm.special.bos)
    places = start + torch.arange(slots.keys.shape[3], device=embeds.device)
    keys = llm.rotary(slots.keys, places).to(embeds.dtype)
    cache.begin(keys, slots.values.to(embeds.dtype), places, slots.counts)
    return llm.hidden(embeds, tree.mask(), tree.positions, cache)


def read_onto(llm: LMWrapper, tree: Tree, embeds: Tensor, slots: Slots, cache: KeyValues | None) -> Tensor:
    """Last hidden states f[B,S,H] of a tree whose branches read changed keys and values of the latents.

    Two passes: contexts, whose cache is then changed, and branches. The cache stays in the order of the tree. Contexts
    of a batch differ in length, so columns in which one row has context and another a branch are in both passes.
    Arguments as of ``read_before``, with ``onto`` true.
    """
    cache = cache or KeyValues()
    context, mask = tree.branch == 0, tree.mask()
    ends = context.sum(1)
    least, most = int(ends.min()), int(ends.max())
    first = llm.hidden(embeds[:, :most], mask[:, :, :most, :most], tree.positions[:, :most], cache)
    _change(cache, tree, most, slots, llm.rotary)
    # Of the first pass a branch reads its context; of the second itself, never a context that was read twice.
    kept, own = mask[:, :, least:, :most], mask[:, :, least:, least:]
    kept = kept & context[:, None, None, :most]
    own = own & (~context[:, None, None, least:] | torch.eye(own.shape[-1], dtype=torch.bool, device=own.device))
    second = llm.hidden(embeds[:, least:], torch.cat([kept, own], -1), tree.positions[:, least:], cache)
    twice = context[:, least:]
    cache.fold(least, most, twice, tree.positions)
    return torch.cat([first[:, :least], either(first[:, least:], second, twice, 1)], 1)


def _change(cache: KeyValues, tree: Tree, most: int, slots: Slots, rotary: Rotary) -> None:
    """Add slots to the cache of the first ``most`` columns, where the latents stand."""
    index, size = tree.row_index[:, :most], slots.keys.shape[3]
    latent = (index >= 0) & (index < size) & (tree.branch[:, :most] == 0)
    picked = index.clamp(0, size - 1)[:, None, None, :, None]
    keys, values = (
        each.gather(3, picked.expand(*each.shape[:3], -1, each.shape[4])) * latent[:, None, None, :, None]
        for each in (slots.keys, slots.values)
    )
    cache.add(rotary(keys, tree.positions[:, :most]), values)
