"""The four graphs' inputs and outputs, as every exporter writes and every engine expects them.

One place, so that manifest, builder and engines cannot drift apart. Letters as in ``base``.
"""

from __future__ import annotations

from typing import Final, Protocol

from .manifest import LlmInfo
from .tensors import Dim, GraphSpec, TensorSpec


class DecoderSizes(Protocol):
    """The numbers that fix a decoder's shapes: a manifest has them, and so has an exporter's config."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def num_kv_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102


def bundle_specs(
    llm: LlmInfo, d_z: int, cache_dtype: str, capacity: Dim = "C", cross: GraphSpec | None = None
) -> dict[str, GraphSpec]:
    """Specs of ``encoder``, ``adapter``, ``splice`` and ``decoder``.

    ``capacity``: a number where it is fixed. ``cross``: spec of the part whose outputs the decoder reads.
    """
    parts = {
        "encoder": encoder_spec(d_z),
        "adapter": adapter_spec(d_z, llm.hidden_size),
        "splice": splice_spec(llm.hidden_size),
        "decoder": decoder_spec(llm, cache_dtype, capacity, cross.outputs if cross else ()),
    }
    return parts | ({"cross": cross} if cross else {})


def encoder_spec(d_z: int) -> GraphSpec:
    """Text ids and their lengths to latents; the length of ``slots`` is M."""
    inputs = (
        TensorSpec("input_ids", "int64", ("B", "S")),
        TensorSpec("lengths", "int64", ("B",)),
        TensorSpec("slots", "int64", ("M",)),
    )
    return GraphSpec(inputs, (TensorSpec("latents", "float32", ("B", "M", d_z)),))


def adapter_spec(d_z: int, hidden: int) -> GraphSpec:
    """Latents to rows: R = M + K + V, the K task rows behind the latents', then V rows that stand before them."""
    inputs = (TensorSpec("latents", "float32", ("B", "M", d_z)),)
    return GraphSpec(inputs, (TensorSpec("rows", "float32", ("B", "R", hidden)),))


def quantiser_specs(d_z: int, code_dims: int) -> dict[str, GraphSpec]:
    """Specs of ``quantise`` and ``dequantise``, which a bundle has where its encoder has a quantiser; none for 0."""
    latents = TensorSpec("latents", "float32", ("B", "M", d_z))
    codes = TensorSpec("codes", "int64", ("B", "M", code_dims))
    if not code_dims:
        return {}
    return {"quantise": GraphSpec((latents,), (codes,)), "dequantise": GraphSpec((codes,), (latents,))}


def prefix_spec(llm: DecoderSizes, d_z: int) -> GraphSpec:
    """Latents to rotated keys and values of every layer."""
    slots: tuple[Dim, ...] = ("B", llm.num_layers, llm.num_kv_heads, "P", llm.head_dim)
    outputs = (TensorSpec("keys", "float32", slots), TensorSpec("values", "float32", slots))
    return GraphSpec((TensorSpec("latents", "float32", ("B", "M", d_z)),), outputs)


def splice_spec(hidden: int) -> GraphSpec:
    """Token ids and row numbers to embeddings."""
    inputs = (
        TensorSpec("input_ids", "int64", ("B", "T")),
        TensorSpec("row_index", "int64", ("B", "T")),
        TensorSpec("rows", "float32", ("B", "R", hidden)),
    )
    return GraphSpec(inputs, (TensorSpec("inputs_embeds", "float32", ("B", "T", hidden)),))


def cross_spec(d_z: int, layers: int, heads: int, size: int) -> GraphSpec:
    """Latents to what so many layers of the decoder read of them: keys, already scaled, values, and what is added to
    the scores of a slot: 0, or a large negative number for an empty one. Values of empty slots are zero.
    """
    return GraphSpec(
        (TensorSpec("latents", "float32", ("B", "M", d_z)),),
        (
            TensorSpec("cross_k", "float32", ("B", layers, heads, size, "M")),
            TensorSpec("cross_v", "float32", ("B", layers, heads, "M", size)),
            TensorSpec("cross_bias", "float32", ("B", 1, 1, "M")),
        ),
    )


def decoder_spec(
    llm: DecoderSizes, cache_dtype: str, capacity: Dim = "C", cross: tuple[TensorSpec, ...] = ()
) -> GraphSpec:
    """S new positions a row to the next token; ``present`` is ``past`` with the new slots written."""
    cache: tuple[Dim, ...] = ("B", llm.num_kv_heads, capacity, llm.head_dim)
    slots = [f"{kv}.{i}" for i in range(llm.num_layers) for kv in "kv"]
    inputs = (
        TensorSpec("inputs_embeds", "float32", ("B", "S", llm.hidden_size)),
        TensorSpec("position_ids", "int64", ("B", "S")),
        TensorSpec("write_indices", "int64", ("B",)),
        TensorSpec("kv_lengths", KV_LENGTHS_DTYPE, ("B",)),
        TensorSpec("last_index", "int64", ("B",)),
        *(TensorSpec(f"past_{s}", cache_dtype, cache) for s in slots),
        *cross,
    )
    outputs = (
        TensorSpec("logits", "float32", ("B", llm.vocab_size)),
        TensorSpec("next_token", "int64", ("B",)),
        TensorSpec("next_embeds", "float32", ("B", 1, llm.hidden_size)),
        *(TensorSpec(f"present_{s}", cache_dtype, cache) for s in slots),
    )
    return GraphSpec(inputs, outputs)


KV_LENGTHS_DTYPE: Final = "int32"
"""TensorRT reads key and value lengths as int32; the function body casts for ONNX Runtime."""
