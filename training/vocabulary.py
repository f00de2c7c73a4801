"""The vocabulary of an LLM as texts, and as latents: how an encoder comes to know an LLM of another family.

In: an LLM's tokenizer, sample texts, an encoder. Out: which tokens are worth a key, and for each the one latent that
the encoder makes of that token's own text. What a text's latents name in the encoder's words, a lookup then finds in
this LLM's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .batch import pad
from .encoder import EncoderFromEmbedLayer
from .encoder_bytes import ByteLevelEncoder
from .llm import LMWrapper
from .model import LatentModel

ANCHOR = "a"
"""Stands before a token when it is decoded: decoders drop the space of a first token."""
BATCH = 512
"""Token texts that the encoder reads at once."""


def token_texts(tokenizer: Tokenizer, size: int) -> list[str]:
    """What each of ``size`` tokens adds to a text; empty for special tokens and for pieces of a character."""
    start = tokenizer.encode(ANCHOR, add_special_tokens=False).ids
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = min(size, tokenizer.get_vocab_size(with_added_tokens=True))
    decoded = tokenizer.decode_batch([[*start, i] for i in range(known)], skip_special_tokens=True)
    before = tokenizer.decode(start)
    out = [""] * size
    for i, text in enumerate(decoded):
        if i not in special and text.startswith(before) and "\ufffd" not in text:
            out[i] = text[len(before) :]
    return out


def choose_tokens(tokenizer: Tokenizer, texts: Sequence[str], pieces: Sequence[str], size: int) -> Tensor:
    """int64 [min(size, V)], ascending: the tokens with text (see ``token_texts``) that ``texts`` use most.

    Where they use fewer, the lowest ids with text follow, then those without.
    """
    vocab = len(pieces)
    count = torch.zeros(vocab, dtype=torch.int64)
    for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids = torch.tensor(encoded.ids, dtype=torch.int64)
        count.index_add_(0, ids, torch.ones_like(ids))
    count += torch.tensor([bool(piece) for piece in pieces])
    count[torch.tensor([not piece for piece in pieces])] = 0
    # Stable, so that equal counts stand in the order of their ids.
    return count.sort(descending=True, stable=True).indices[:size].sort().values


def only_tokens(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[str]:
    """``pieces`` without those that another tokenizer reads as several tokens, or none.

    An encoder that names one token of a piece would name them by the key of one of theirs, and a lookup could not tell
    them from that token. Of what SmolLM2 reads of English text, 99.6 % are tokens of Gemma 3 too.
    """
    found = tokenizer.encode_batch(list(pieces), add_special_tokens=False)
    return [piece if len(own.ids) == 1 else "" for piece, own in zip(pieces, found, strict=True)]


@torch.no_grad()
def token_latents(model: LatentModel, pieces: Sequence[str]) -> Tensor:
    """f32 [N,d_z], the one latent of each text; zero for an empty one."""
    device = next(model.encoder.parameters()).device
    ids = [model.ids(piece) for piece in pieces]
    out = torch.zeros(len(ids), model.config.d_z)
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        input_ids, lengths = (t.to(device) for t in pad([ids[i] for i in chosen]))
        out[chosen] = _alone(model, input_ids, lengths).cpu()
    return out


def _alone(model: LatentModel, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """f32 [B,d_z], one latent of each text that names one token: what a lookup finds at the first place."""
    encoder, slots = model.encoder, torch.arange(1, device=input_ids.device)
    assert isinstance(encoder, (EncoderFromEmbedLayer, ByteLevelEncoder))
    cut = encoder.cut(input_ids, lengths, slots, places=1)
    return encoder(input_ids, lengths, slots, cut=cut)[:, 0]  # type: ignore[no-any-return]  # a module's call


def embed_text(llm: LMWrapper, table: Tensor, texts: Sequence[str], most: int) -> Tensor:
    """f32 [T,H], rows of the LLM's table [V,H] for the first ``most`` tokens of each text, end to end."""
    return torch.cat([table[torch.tensor(llm.encode(text)[:most], dtype=torch.int64)] for text in texts])
