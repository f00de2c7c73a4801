"""What stands for a text in a prompt: tokens of it, latents, pooled embeddings, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.errors import InputError
from ...core.names import strings
from ...core.prompt import Segment, verbatim_ids
from ..batch import pad
from ..data import Item, Question
from ..injection import Injection
from ..latents import Rule
from ..llm import LMWrapper
from ..model import LatentModel
from .kinds import Kind
from .selection import random_tokens, sentence_tokens, sentences, surprising_tokens
from .sizes import hybrid_bytes, latent_bytes, text_bytes
from .untrained import untrained


@dataclass(frozen=True)
class Context:
    """One text as a prompt sees it, and the questions asked behind it.

    Attributes:
        item: index of the text in the batch.
        segment: token ids, or the range of adapter rows.
        questions: usually all of the text; one alone where the prefix was chosen by it.
        sizes: bytes on the wire, by form.
        verbatim: token ids of strings that came beside the latents; they stand in front of each question.
    """

    item: int
    segment: Segment
    questions: tuple[Question, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    verbatim: Sequence[int] = ()


@dataclass(frozen=True)
class Prefixes:
    """Contexts of one batch, what the LLM is given of them, and how many of its rows stand before the task's."""

    contexts: list[Context]
    given: Injection
    capacity: int


def prefixes(model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: Kind) -> Prefixes:
    """Prefixes of some texts for one kind of row."""
    if kind.base in ("latents", "shuffled", "start"):
        return _latents(model, llm, items, kind)
    if kind.base in ("mean4", "mean8"):
        return _pooled(model, llm, items, int(kind.base[4:]))
    contexts = _chosen(model, llm, items, kind)
    return Prefixes(contexts, model.task_rows(llm, len(contexts)), 0)


def _latents(model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: Kind) -> Prefixes:
    config, device = model.config, llm.model.device
    reader = untrained(model) if kind.base == "start" else model
    input_ids, lengths = pad([model.ids(i.context) for i in items])
    if kind.base == "shuffled":
        input_ids, lengths = input_ids.roll(1, 0), lengths.roll(1, 0)
    rule = kind.rule(config.latent_len)
    z = carried(model, encode(reader, input_ids.to(device), lengths.to(device), rule), kind.codec)
    given = reader.read(llm, z)
    counts = latents_of(model, lengths, rule)
    contexts = []
    for b, (item, m) in enumerate(zip(items, counts, strict=True)):
        sizes = latent_bytes(m, config.d_z, config.fsq_profile)
        beside = strings(item.context) if kind.codec == "hybrid" else ()
        if kind.codec == "hybrid":
            inner = f"fsq/{config.fsq_profile}" if config.fsq_profile else "i8"
            sizes |= hybrid_bytes(sizes[f"frame {inner}"], beside)
        contexts.append(Context(b, range(m), item.questions, sizes, verbatim_ids(llm.encode, beside)))
    return Prefixes(contexts, given, z.shape[1])


def encode(model: LatentModel, input_ids: Tensor, lengths: Tensor, rule: Rule) -> Tensor:
    """Latents f32 [B,M,d_z] of texts whose number of latents may differ; slots beyond a text's own are zero."""
    counts = torch.tensor(latents_of(model, lengths, rule), device=lengths.device)
    states = [-(-n // model.config.stride) for n in lengths.tolist()]
    return model.encode(input_ids, lengths, rule.capacity(states), counts)


def latents_of(model: LatentModel, lengths: Tensor, rule: Rule) -> list[int]:
    """Latents of texts of int64 [B] ids of the encoder."""
    return [rule(-(-n // model.config.stride)) for n in lengths.tolist()]


def carried(model: LatentModel, z: Tensor, codec: str) -> Tensor:
    """Latents f32 [B,M,d_z] after they went through a codec of the wire (``runtime/codec.py``); f32 without one.

    Of ``hybrid`` the inner one: fsq, or i8 where there is no quantiser.

    Raises:
        InputError: 2111 ``fsq`` of a checkpoint that was trained without a quantiser.
    """
    if codec == "hybrid":
        codec = "fsq" if model.quantiser is not None else "i8"
    if codec == "fsq":
        if model.quantiser is None:
            raise InputError(2111, "row needs a quantiser", where="_fsq", expected="expected fsq_profile 1 or 2, got 0")
        return model.quantised(z)
    if codec == "f16":
        return z.half().float()
    if codec == "i8":
        scale = z.abs().amax(-1, keepdim=True) / 127
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.clamp(torch.round(z / safe), -127, 127) * scale
    return z


def _pooled(model: LatentModel, llm: LMWrapper, items: Sequence[Item], ratio: int) -> Prefixes:
    """Means of ``ratio`` neighbouring input embeddings, given to the LLM as they are: merging without learning."""
    device = llm.model.device
    means = []
    for item in items:
        ids = torch.tensor(llm.encode(item.context)[: model.config.window], device=device)
        embedded = llm.model.get_input_embeddings()(ids).float()
        means.append(torch.stack([part.mean(0) for part in embedded.split(ratio)]))
    capacity = max(len(m) for m in means)
    pooled = torch.stack([F.pad(m, (0, 0, 0, capacity - len(m))) for m in means])
    rows = torch.cat([pooled, model.task_rows(llm, len(items)).rows], dim=1)
    contexts = [
        Context(b, range(len(m)), item.questions, {"rows f16": 2 * m.numel()})
        for b, (item, m) in enumerate(zip(items, means, strict=True))
    ]
    return Prefixes(contexts, Injection(rows), capacity)


def _chosen(model: LatentModel, llm: LMWrapper, items: Sequence[Item], kind: Kind) -> list[Context]:
    """Rows of tokens: ``kind`` says which tokens of each text."""
    texts = [llm.encode(item.context)[: model.config.window] for item in items]
    rule = kind.rule(model.config.latent_len)
    if kind.base == "bm25":
        return [c for b, item in enumerate(items) for c in _extracted(llm, b, item, rule(len(texts[b])))]
    nats = surprisal(llm, texts) if kind.base == "surprisal" else [[] for _ in texts]
    choose: dict[str, Callable[[int, list[int], int], list[int]]] = {
        "none": lambda b, ids, m: [],
        "full": lambda b, ids, m: ids,
        "names": lambda b, ids, m: verbatim_ids(llm.encode, strings(items[b].context)),
        "first": lambda b, ids, m: ids[:m],
        "last": lambda b, ids, m: ids[-m:],
        "random": lambda b, ids, m: random_tokens(ids, m, items[b].context),
        "surprisal": lambda b, ids, m: surprising_tokens(ids, m, nats[b]),
    }
    kept = [choose[kind.base](b, ids, rule(len(ids))) for b, ids in enumerate(texts)]
    return [
        Context(b, ids, item.questions, text_bytes(llm.tokenizer.decode(ids)))
        for b, (item, ids) in enumerate(zip(items, kept, strict=True))
    ]


def _extracted(llm: LMWrapper, number: int, item: Item, count: int) -> list[Context]:
    texts = sentences(item.context)
    pieces = [llm.encode(text if n == 0 else " " + text) for n, text in enumerate(texts)]
    out = []
    for question in item.questions:
        ids = sentence_tokens(question.text, pieces, texts, count)
        out.append(Context(number, ids, (question,), text_bytes(llm.tokenizer.decode(ids))))
    return out


@torch.no_grad()
def surprisal(llm: LMWrapper, texts: Sequence[Sequence[int]], block: int = 512) -> list[list[float]]:
    """``-log p(token | BOS, tokens before)`` in nats, for every token of every text.

    Args:
        llm: its own expectation, without any question.
        texts: token ids; texts may differ in length.
        block: positions whose logits are held at a time (262,144 entries each for Gemma).
    """
    device, bos = llm.model.device, list(llm.special.bos)
    ids, lengths = pad([[*bos, *text] for text in texts])
    ids = ids.to(device)
    size = ids.shape[1]
    real = torch.arange(size)[None] < lengths[:, None]
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None] & real[:, None, :] | torch.eye(size, dtype=torch.bool)
    positions = torch.arange(size, device=device)[None].expand(len(texts), -1)
    hidden = llm.hidden(llm.model.get_input_embeddings()(ids), mask[:, None].to(device), positions)
    before, labels = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    nats = torch.cat(
        [
            F.cross_entropy(llm.logits(before[a : a + block]), labels[a : a + block], reduction="none")
            for a in range(0, len(labels), block)
        ]
    ).view(len(texts), -1)
    # Without BOS nothing stands before the first token: it cannot be expected.
    skip = max(0, len(bos) - 1)
    first = [] if bos else [float("inf")]
    return [first + row[skip : skip + len(t) - len(first)].tolist() for row, t in zip(nats, texts, strict=True)]
