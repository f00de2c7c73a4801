"""Adapters: latents Z -> rows of one LLM's input embeddings. One adapter per LLM.

``Adapter`` is the control: linear, norm, scaled to the LLM's embedding RMS. ``LearnedAdapter`` reads each latent as
a soft lookup in the LLM's own frozen vocabulary: ``softmax(top(z K^T / tau)) E`` with unit keys
``K = normalise((E - mean) P)``.
A 256-dimensional latent names a token this way without loss, where a linear map of the same width loses most of it;
an MLP that starts at zero adds what lies between tokens.

``TableAdapter`` does the same for an LLM whose embeddings the encoder knows nothing of (another family, another width):
its keys are not projected but stored, each the latent of that token's own text.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .binding import unbind
from .calibration import Calibration
from .pooling import unit

BESIDE: Final = 0.5
"""Share of each token after the first in a row that nothing was learned of yet."""
BLOCK: Final = 65536
"""Keys that a query is compared with at once, while training."""


class TaskRows(nn.Module):
    """Learned rows that tell the frozen LLM what to do with the latents, in its embedding space: [K,H]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))

    def forward(self, batch: int) -> Tensor:
        return self.weight[None].expand(batch, -1, -1)


class Adapter(nn.Module):
    """Linear map, RMS norm, scale: f32 [B,M,d_z] -> f32 [B,M+K,H], the K task rows last."""

    def __init__(self, d_z: int, width: int, task_tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_z, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.task = TaskRows(task_tokens, width)
        self.calibration: Calibration | None = None

    def forward(self, latents: Tensor) -> Tensor:
        return finish(self, self.plain(latents), latents)

    def plain(self, latents: Tensor) -> Tensor:
        """Rows without calibration and task rows, f32 [B,M,H]."""
        x = self.linear(latents)
        out: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        return out


class LearnedAdapter(nn.Module):
    """Soft vocabulary lookup plus a small MLP and an affine: f32 [B,M,d_z] -> f32 [B,M+K,H], task rows last.

    Args:
        d_z: width of a latent.
        vocab: rows of the LLM's embedding table.
        width: the LLM's hidden size H.
        task_tokens: K.
        top: vocabulary entries mixed for one latent.
        tau: start of the softmax temperature.
        hidden: width of the MLP.
        places: tokens that a latent names (see ``binding``). All are looked up in the same keys. Where there are
            several, each is added through a matrix of its place, and the MLP reads them too: in the latent their keys
            lie over each other, behind the lookup they are apart.

    The table ``llm_embedding`` f32 [V,H] belongs to the frozen LLM (the *output* of its embedding module) and is
    neither trained nor saved here.
    """

    llm_embedding: Tensor
    mean: Tensor
    rms: Tensor

    def __init__(
        self, d_z: int, vocab: int, width: int, *, task_tokens: int, top: int, tau: float, hidden: int, places: int = 1
    ) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("llm_embedding", torch.zeros(vocab, width), persistent=False)
        self.register_buffer("rms", torch.ones(()), persistent=False)
        self._make_keys(d_z, vocab, width)
        self.log_tau = nn.Parameter(torch.tensor(tau).log())
        self.up = nn.Linear(d_z, hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        several = range(places if places > 1 else 0)
        self.places = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in several)
        self.reads = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in several)
        self.task = TaskRows(task_tokens, width)
        self.calibration: Calibration | None = None
        nn.init.zeros_(self.down.weight)
        for number, place in enumerate(self.places):
            # A row begins as the first token with half of each other one added; from zero that half is slow to learn.
            start = BESIDE * torch.eye(width) if number else torch.zeros(width, width)
            place.weight = nn.Parameter(start)

    def _make_keys(self, d_z: int, vocab: int, width: int) -> None:
        self.register_buffer("mean", torch.zeros(width))
        self.key = nn.Linear(width, d_z, bias=False)

    def set_table(self, table: Tensor) -> None:
        """Give the adapter its LLM's embeddings, f32 [V,H]."""
        self.llm_embedding.copy_(table)
        self.rms.copy_(table.square().mean().sqrt())

    def forward(self, latents: Tensor) -> Tensor:
        return finish(self, self.plain(latents), latents)

    def plain(self, latents: Tensor) -> Tensor:
        """Rows without calibration and task rows, f32 [B,M,H]."""
        hidden = self.up(latents)
        if len(self.places):
            found = self._named(latents)
            row = found[0]
            for token, place, read in zip(found, self.places, self.reads, strict=True):
                row, hidden = row + place(token), hidden + read(token / self.rms)
        else:
            row = self._lookup(self.query(latents))
        out: Tensor = (row + self.rms * self.down(F.gelu(hidden))) * self.gain + self.bias
        return out

    def query(self, latents: Tensor) -> Tensor:
        """Unit vectors that are compared with the keys, f32 [B,M,d_z]."""
        return unit(latents)

    def _named(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The tokens of all places, P times f32 [B,M,H]."""
        # Looked up together: computing all keys is most of what a lookup costs.
        queries = [self.query(unbind(latents, place)) for place in range(len(self.places))]
        return self._lookup(torch.stack(queries, dim=1)).unbind(1)

    def _lookup(self, query: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            # Which entries win is found without gradient; only the winners' keys are then computed with it.
            with torch.no_grad():
                best = self._best(query)
            entries = F.embedding(self.tokens(best), self.llm_embedding)
            keys = self._keys_of(best, entries)
            score = (keys @ query.unsqueeze(-1)).squeeze(-1) / self.log_tau.exp()
            return (score.softmax(-1).unsqueeze(-2) @ entries).squeeze(-2)
        score, best = self._scores(query, self.keys()).topk(self.top, dim=-1)
        weight = (score / self.log_tau.exp()).softmax(-1)
        return (weight.unsqueeze(-2) @ F.embedding(self.tokens(best), self.llm_embedding)).squeeze(-2)

    def tokens(self, entries: Tensor) -> Tensor:
        """Token ids of entries of the lookup: here every token is one."""
        return entries

    def keys(self) -> Tensor:
        """f32 [V,d_z], unit rows: where each token of the LLM lies among the latents."""
        return self._project(self.llm_embedding)

    def _project(self, rows: Tensor) -> Tensor:
        return unit(self.key(rows - self.mean))

    def _keys_of(self, best: Tensor, entries: Tensor) -> Tensor:
        return self._project(entries)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return query @ keys.T

    @property
    def size(self) -> int:
        """Entries of the lookup."""
        return int(self.llm_embedding.shape[0])

    def _block(self, start: int, stop: int) -> Tensor:
        return self._project(self.llm_embedding[start:stop])

    def _best(self, query: Tensor) -> Tensor:
        """int64 [B,M,top], block after block: scores of a vocabulary of 262,144 at once would be half a gigabyte."""
        score = best = None
        for start in range(0, self.size, BLOCK):
            found = self._scores(query, self._block(start, start + BLOCK))
            own = found.topk(min(self.top, found.shape[-1]), dim=-1)
            values, indices = own.values, own.indices + start
            if score is not None and best is not None:
                both, all_of = torch.cat([score, values], -1), torch.cat([best, indices], -1)
                values, chosen = both.topk(min(self.top, both.shape[-1]), dim=-1)
                indices = all_of.gather(-1, chosen)
            score, best = values, indices
        assert best is not None
        return best


class TableAdapter(LearnedAdapter):
    """As ``LearnedAdapter``, with a stored key for each of ``size`` chosen tokens: shapes and arguments the same.

    The table is frozen (``entries`` int64 [N,1], ``table`` f32 [N,d_z]) and saved with the adapter; ``turn`` [d_z,d_z],
    which starts as the identity, lets the query follow an encoder that is trained on.
    """

    entries: Tensor
    table: Tensor

    def __init__(
        self,
        d_z: int,
        vocab: int,
        width: int,
        *,
        task_tokens: int,
        top: int,
        tau: float,
        hidden: int,
        size: int,
        places: int = 1,
    ) -> None:
        self._chosen = min(size, vocab)
        super().__init__(d_z, vocab, width, task_tokens=task_tokens, top=top, tau=tau, hidden=hidden, places=places)

    def _make_keys(self, d_z: int, vocab: int, width: int) -> None:
        self.register_buffer("entries", torch.arange(self._chosen)[:, None])
        self.register_buffer("table", torch.zeros(self._chosen, d_z))
        self.turn = nn.Linear(d_z, d_z, bias=False)
        nn.init.eye_(self.turn.weight)

    def set_keys(self, entries: Tensor, latents: Tensor) -> None:
        """Choose tokens int64 [N] and give them the latents of their texts, f32 [N,d_z]."""
        self.entries.copy_(entries[:, None])
        self.table.copy_(unit(latents))

    def query(self, latents: Tensor) -> Tensor:
        """Unit vectors that are compared with the keys, f32 [B,M,d_z]."""
        return unit(self.turn(latents))

    def tokens(self, entries: Tensor) -> Tensor:
        """Token ids of entries of the table."""
        return F.embedding(entries, self.entries).squeeze(-1)

    def keys(self) -> Tensor:
        """f32 [N,d_z], unit rows (a token without text has a zero one)."""
        return self.table

    def _keys_of(self, best: Tensor, entries: Tensor) -> Tensor:
        return F.embedding(best, self.table)

    @property
    def size(self) -> int:
        """Entries of the lookup."""
        return self._chosen

    def _block(self, start: int, stop: int) -> Tensor:
        return self.table[start:stop]


def finish(adapter: Adapter | LearnedAdapter, rows: Tensor, latents: Tensor) -> Tensor:
    """Calibrate rows f32 [B,M,H], if the adapter does, and put its task rows behind them: f32 [B,M+K,H]."""
    if adapter.calibration is not None:
        rows = adapter.calibration(rows, (latents != 0).any(-1, keepdim=True))
    return torch.cat([rows, adapter.task(rows.shape[0])], dim=1)
