"""ONNX operators in plain torch, one small function each: what the decoder's builder emits, and what tests plant.

Written to be read beside the operators' definitions. Inside a node, sums, exponentials and rotations are
computed in float32 and rounded once, as a fused kernel does; between nodes tensors have the graph's own dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

Attributes = Mapping[str, Any]
Op = Callable[[list[Any], Attributes], Tensor | tuple[Tensor, ...]]
"""Inputs (a Tensor each, None where absent) and attributes to the one output, or to several."""

DOMAINS: Final = ("", "ai.onnx", "com.microsoft")
"""Of the operators below."""

IN_PLACE: Final[dict[str, dict[int, int]]] = {"TensorScatter": {0: 0}, "GroupQueryAttention": {1: 3, 2: 4}}
"""Operator -> output number -> number of the input that it changes and returns."""

DTYPES: Final[dict[int, torch.dtype]] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""ONNX element type to torch's."""


def rms_norm(x: list[Tensor], a: Attributes) -> Tensor:
    """Normalised in float32, rounded, then scaled in the graph's dtype: so the operator is defined."""
    wide = x[0].float()
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + a.get("epsilon", 1e-5))
    return wide.to(x[0].dtype) * x[1]


def rotary(x: list[Tensor], a: Attributes) -> Tensor:
    """Halves of the head turn against each other; x [B,h,S,D] or [B,S,h*D], tables [P,D/2], positions [B,S]."""
    if a.get("interleaved", 0) or a.get("rotary_embedding_dim", 0):
        raise NotImplementedError("interleaved or partial rotary embedding")
    if x[0].dim() == 3:
        return _flat(rotary([_heads(x[0], a["num_heads"]), *x[1:]], {}))
    cos, sin = (table[x[3]].float().unsqueeze(1) for table in x[1:3])  # [B,1,S,D/2]
    first, second = x[0].float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x[0].dtype)


def scatter(x: list[Tensor], a: Attributes) -> Tensor:
    """New slots into a cache [B,Hkv,C,D] from each row's write index on. Changes its first input."""
    cache, new, indices = x
    if a.get("axis", -2) not in (-2, 2) or a.get("mode", b"linear") not in (b"linear", "linear"):
        raise NotImplementedError("TensorScatter other than linear over slots")
    size = new.shape[2]
    for b, start in enumerate(indices.tolist()):
        if start < 0 or start + size > cache.shape[2]:
            raise IndexError(f"row {b}: slots {start}..{start + size - 1} of {cache.shape[2]}")
        cache[b, :, start : start + size] = new[b]
    return cache


def attention(x: list[Any], a: Attributes) -> Tensor:
    """Standard Attention over [B,h,S,D]; causal from the last valid slot where key lengths are given."""
    q, k, v, mask, past_k, past_v, valid = (x + [None] * 4)[:7]
    if past_k is not None or past_v is not None or a.get("softcap") or q.dim() != 4:
        raise NotImplementedError("attention with past inputs, softcap or packed heads")
    queries, slots = q.shape[2], k.shape[2]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1).float() for t in (k, v))
    scores = q.float() @ k.transpose(-1, -2) * a.get("scale", q.shape[3] ** -0.5)  # [B,h,S,C]
    slot = torch.arange(slots, device=q.device)
    seen = torch.ones(1, 1, queries, slots, dtype=torch.bool, device=q.device)
    # With lengths, the last query of a row stands at its last valid slot; without, query i stands at slot i.
    last = torch.zeros(1, dtype=torch.int64, device=q.device) if valid is None else valid - queries
    if valid is not None:
        seen = seen & (slot < valid[:, None, None, None])
    if a.get("is_causal", 0):
        at = last[:, None] + torch.arange(queries, device=q.device)  # [B or 1,S]
        seen = seen & (slot <= at[:, None, :, None])
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask.float()
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    weights = torch.where(seen.any(dim=-1, keepdim=True), weights, 0.0)  # a query that sees nothing
    mixed: Tensor = weights @ v
    return mixed.to(q.dtype)


def group_query_attention(x: list[Any], a: Attributes) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX Runtime's own: q, k, v [B,S,h*D]; writes its cache (inputs 3, 4), the last new slot at ``x[5]``."""
    if a.get("do_rotary", 0) or a.get("softcap", 0.0) or a.get("local_window_size", -1) > 0:
        raise NotImplementedError("GroupQueryAttention with rotary, softcap or a window")
    last = x[5].long()
    q, k, v = (_heads(t, a[n]) for t, n in zip(x[:3], ("num_heads", "kv_num_heads", "kv_num_heads"), strict=True))
    start = last + 1 - k.shape[2]
    keys, values = (scatter([cache, new, start], {}) for cache, new in ((x[3], k), (x[4], v)))
    scale = a.get("scale", 0.0) or q.shape[3] ** -0.5
    mixed = attention([q, keys, values, None, None, None, last + 1], {"is_causal": 1, "scale": scale})
    return _flat(mixed), keys, values


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def gather_nd(x: list[Tensor], a: Attributes) -> Tensor:
    """One batch dimension and one index: ``x[b, index[b]]``."""
    data, index = x
    if a.get("batch_dims", 0) != 1 or index.shape[-1] != 1:
        raise NotImplementedError("GatherND other than one index below one batch dimension")
    rows = torch.arange(len(data), device=data.device).reshape(-1, *[1] * (index.dim() - 2))
    return data[rows, index[..., 0]]


def gather(x: list[Tensor], a: Attributes) -> Tensor:
    """Entries along an axis, in the shape of the indices."""
    data, index = x
    axis = a.get("axis", 0) % data.dim()
    found = data.index_select(axis, index.reshape(-1) % data.shape[axis])
    return found.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def gemm(x: list[Tensor], a: Attributes) -> Tensor:
    """``x y``, either transposed, plus a bias."""
    left, right = (t.T if a.get(f"trans{n}", 0) else t for t, n in zip(x[:2], "AB", strict=True))
    y = left @ right * a["alpha"] if a.get("alpha", 1.0) != 1.0 else left @ right
    return y + x[2] * a.get("beta", 1.0) if len(x) > 2 and x[2] is not None else y


def reshape(x: list[Tensor], a: Attributes) -> Tensor:
    """0 keeps a size."""
    sizes = [x[0].shape[i] if n == 0 and not a.get("allowzero", 0) else n for i, n in enumerate(x[1].tolist())]
    return x[0].reshape(sizes)


def unsqueeze(x: list[Tensor], _: Attributes) -> Tensor:
    """Axes count in the result."""
    rank = x[0].dim() + x[1].numel()
    y = x[0]
    for axis in sorted(int(i) % rank for i in x[1].reshape(-1)):
        y = y.unsqueeze(axis)
    return y


def squeeze(x: list[Tensor], _: Attributes) -> Tensor:
    """The axes named, or all of size 1."""
    return x[0].squeeze(tuple(x[1].tolist())) if len(x) > 1 and x[1] is not None else x[0].squeeze()


def shape(x: list[Tensor], a: Attributes) -> Tensor:
    """Sizes from ``start`` to before ``end``."""
    return torch.tensor(list(x[0].shape)[a.get("start", 0) : a.get("end")], device=x[0].device)


def gelu(x: list[Tensor], a: Attributes) -> Tensor:
    """Exact or with tanh."""
    kind = a.get("approximate", b"none")
    return torch.nn.functional.gelu(x[0].float(), approximate=_text(kind)).to(x[0].dtype)


def reduce(function: Callable[..., Tensor]) -> Op:
    """A reduction over the axes of the second input, or over all."""

    def run(x: list[Any], a: Attributes) -> Tensor:
        axes = tuple(x[1].tolist()) if len(x) > 1 and x[1] is not None else tuple(range(x[0].dim()))
        return function(x[0], dim=axes, keepdim=bool(a.get("keepdims", 1)))

    return run


def softmax(x: list[Tensor], a: Attributes) -> Tensor:
    """In float32, rounded once."""
    return torch.softmax(x[0].float(), dim=a.get("axis", -1)).to(x[0].dtype)


def trilu(x: list[Tensor], a: Attributes) -> Tensor:
    """A triangle; the rest zero."""
    k = int(x[1]) if len(x) > 1 and x[1] is not None else 0
    return torch.triu(x[0], k) if a.get("upper", 1) else torch.tril(x[0], k)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def run(x: list[Tensor], _: Attributes) -> Tensor:
        y = x[0]
        for other in x[1:]:
            y = function(y, other)
        return y

    return run


OPS: Final[dict[str, Op]] = {
    "Add": lambda x, a: x[0] + x[1],
    "And": lambda x, a: x[0] & x[1],
    "ArgMax": lambda x, a: x[0].argmax(dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1))),
    "Attention": attention,
    "Cast": lambda x, a: x[0].to(DTYPES[a["to"]]),
    "Concat": lambda x, a: torch.cat(x, dim=a["axis"]),
    "Constant": lambda x, a: a["value"],
    "Div": lambda x, a: x[0] / x[1] if x[0].is_floating_point() else x[0] // x[1],
    "Equal": lambda x, a: x[0] == x[1],
    "Expand": lambda x, a: x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(x[1].tolist()))),
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": gelu,
    "Gemm": gemm,
    "GroupQueryAttention": group_query_attention,
    "Greater": lambda x, a: x[0] > x[1],
    "GreaterOrEqual": lambda x, a: x[0] >= x[1],
    "Identity": lambda x, a: x[0],
    "Less": lambda x, a: x[0] < x[1],
    "LessOrEqual": lambda x, a: x[0] <= x[1],
    "MatMul": lambda x, a: x[0] @ x[1],
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Not": lambda x, a: ~x[0],
    "Or": lambda x, a: x[0] | x[1],
    "RMSNormalization": rms_norm,
    "Range": lambda x, a: torch.arange(*(t.item() for t in x), dtype=x[0].dtype, device=x[0].device),
    "ReduceMax": reduce(torch.amax),
    "ReduceMean": reduce(torch.mean),
    "ReduceSum": reduce(torch.sum),
    "Reshape": reshape,
    "RotaryEmbedding": rotary,
    "Shape": shape,
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Softmax": softmax,
    "Sqrt": lambda x, a: torch.sqrt(x[0]),
    "Squeeze": squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: torch.tanh(x[0]),
    "TensorScatter": scatter,
    "Transpose": lambda x, a: x[0].permute(a["perm"]) if "perm" in a else x[0].permute(*reversed(range(x[0].dim()))),
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
    "Where": lambda x, a: torch.where(x[0], x[1], x[2]),
}
