"""What TensorRT's parser made of a graph, compared with the graph: before anything is built.

A parser may read a file without an error and still compute something else. Known cases: lengths of a standard
Attention are dropped and causality starts at the upper left, so that a decode step sees slot 0 only; a cache
update that is copied instead of done in place; a layer that fell back to single operators.

In: the parsed network and the ONNX model it came from. Out: what was counted, or BundleError 4012 that names
the first misfit. Knows both TensorRT packages by ``trt_api`` and builds nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import onnx
from onnx import TensorProto

from ..core.errors import BundleError
from ..engines.specs import DecoderSizes
from ..engines.trt_api import AttentionInput, KvCacheUpdate, Layer, Network, Tensor, TensorRt

FLOATS: Final[dict[int, str]] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
"""ONNX element type -> TensorRT's name of it."""
TYPES: Final = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
NORMS: Final = ("RMSNormalization", "LayerNormalization")
_SOURCE: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Decoder:
    """What a decoder must have become.

    Attributes:
        sizes: of the language model.
        dtype: of activations and cache, numpy name.
        capacity: C.
        flavour: ``dual`` or ``mask``.
    """

    sizes: DecoderSizes
    dtype: str
    capacity: int
    flavour: str = "dual"


@dataclass(frozen=True)
class View:
    """A network with its layers by kind, and the layer behind each tensor."""

    trt: TensorRt
    network: Network
    layers: tuple[Layer, ...]
    made_by: dict[str, Layer]

    def of(self, kind: str) -> Iterator[Layer]:
        """Layers whose ``LayerType`` has this name."""
        return (layer for layer in self.layers if layer.type.name == kind)

    def origin(self, tensor: Tensor | None, through: tuple[str, ...] = ("CAST", "SHUFFLE", "IDENTITY")) -> str:
        """Name of the tensor that this one was made from by layers of these kinds; ``nothing`` for an absent one."""
        while tensor is not None:
            layer = self.made_by.get(tensor.name)
            if layer is None or layer.type.name not in through:
                return tensor.name
            tensor = layer.get_input(0)
        return "nothing"

    def sources(self, tensor: Tensor | None) -> list[str]:
        """Network inputs that a tensor depends on."""
        found, seen, left = set[str](), set[str](), [tensor] if tensor is not None else []
        while left:
            here = left.pop()
            if here.is_network_input:
                found.add(here.name)
            elif here.name not in seen and here.name in self.made_by:
                seen.add(here.name)
                left += inputs(self.made_by[here.name])
        return sorted(found)


def view(trt: TensorRt, network: Network) -> View:
    """Read all layers once."""
    layers = tuple(network.get_layer(i) for i in range(network.num_layers))
    made_by = {out.name: layer for layer in layers for out in outputs(layer)}
    return View(trt, network, layers, made_by)


def outputs(layer: Layer) -> list[Tensor]:
    """Outputs that are there."""
    return [t for t in (layer.get_output(i) for i in range(layer.num_outputs)) if t is not None]


def inputs(layer: Layer) -> list[Tensor]:
    """Inputs that are there."""
    return [t for t in (layer.get_input(i) for i in range(layer.num_inputs)) if t is not None]


def as_class(layer: Layer, cls: Any) -> Any:
    """The same layer with the members of its own class; Python sees the base class only until told."""
    cast(Any, layer).__class__ = cls
    return layer


def audit(trt: TensorRt, network: Network, model: onnx.ModelProto, decoder: Decoder | None = None) -> dict[str, Any]:
    """Compare a parsed network with its model.

    Args:
        trt: the module that parsed it.
        network: result of the parser.
        model: the file that was parsed; weights need not be loaded.
        decoder: what a decoder must have become; None for the other parts.

    Returns:
        counts for the manifest: layers, weights, casts, and of a decoder its cache updates and attentions.

    Raises:
        BundleError: 4012 with the name of the first input, layer, weight or cast that differs.
    """
    seen = view(trt, network)
    check_interface(seen, model)
    found: dict[str, Any] = {"layers": len(seen.layers), "weights": check_weights(seen, model)}
    if decoder is not None:
        found["kv_cache_updates"] = check_cache(seen, decoder)
        found["attentions"] = check_attention(seen, decoder)
    found["casts"] = check_casts(seen, model)
    for kind, op in (("QUANTIZE", "QuantizeLinear"), ("DEQUANTIZE", "DequantizeLinear")):
        expect(sum(1 for _ in seen.of(kind)), sum(n.op_type == op for n in model.graph.node), f"{op} layers", op)
    return found


def expect(got: object, wanted: object, what: str, where: str) -> None:
    """Raise BundleError 4012 unless both are equal."""
    if got != wanted:
        raise BundleError(
            4012,
            f"TensorRT read the graph differently: {what}",
            where=where,
            expected=f"expected {wanted}, got {got}",
            fix="do not run this graph on TensorRT; report it with the TensorRT version",
        )


def check_interface(seen: View, model: onnx.ModelProto) -> None:
    """Same inputs and outputs in dtype and fixed sizes."""
    net = seen.network
    for side, count, get, wanted in (
        ("input", net.num_inputs, net.get_input, model.graph.input),
        ("output", net.num_outputs, net.get_output, model.graph.output),
    ):
        found = {t.name: t for t in (get(i) for i in range(count))}
        expect(sorted(found), sorted(v.name for v in wanted), f"names of {side}s", f"{side}s of the network")
        for value in wanted:
            tensor, kind = found[value.name], value.type.tensor_type
            expect(tensor.dtype.name, _type_name(kind.elem_type), f"dtype of an {side}", f"{side} {value.name}")
            if side == "input":
                sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
                expect(list(tensor.shape), sizes, "shape of an input", f"input {value.name}")


def _type_name(element: int) -> str:
    return FLOATS.get(element) or TensorProto.DataType.Name(element)


def check_weights(seen: View, model: onnx.ModelProto) -> int:
    """Every float weight is a constant of its own dtype and shape; returns how many."""
    constants = {layer.name: layer for layer in seen.of("CONSTANT")}
    # TensorRT keeps a vector of a norm as [1,1,H] or so: sizes of 1 do not count.
    weights = [w for w in model.graph.initializer if w.data_type in FLOATS]
    for weight in weights:
        layer = constants.get(weight.name)
        expect(layer is not None, True, "a weight is not in the network", f"weight {weight.name}")
        (out,) = outputs(cast(Layer, layer))
        expect(out.dtype.name, FLOATS[weight.data_type], "a weight has another dtype", f"weight {weight.name}")
        shape = [d for d in weight.dims if d != 1]
        expect([d for d in out.shape if d != 1], shape, "a weight has another shape", f"weight {weight.name}")
    return len(weights)


def check_cache(seen: View, decoder: Decoder) -> int:
    """One update in place for each cache tensor: 2 L of them; returns how many."""
    s, found = decoder.sizes, set()
    wanted = {f"{kv}.{i}" for i in range(s.num_layers) for kv in "kv"}
    for layer in seen.of("KV_CACHE_UPDATE"):
        update = cast(KvCacheUpdate, as_class(layer, seen.trt.IKVCacheUpdateLayer))
        cache, new, index = (update.get_input(i) for i in range(3))
        (out,) = outputs(update)
        where = f"layer {layer.name}"
        expect(update.cache_mode.name, "LINEAR", "cache mode", where)
        expect(cache is not None and cache.is_network_input, True, "a cache that is no network input", where)
        name = cast(Tensor, cache).name.removeprefix("past_")
        expect(out.is_network_output, True, "a cache update that is no network output", where)
        expect(out.name, f"present_{name}", "output of a cache update", where)
        expect(seen.origin(index), "write_indices", "source of the write index", where)
        shape = [-1, s.num_kv_heads, decoder.capacity, s.head_dim]
        expect(list(cast(Tensor, cache).shape), shape, "static cache shape", where)
        expect(cast(Tensor, cache).dtype.name, TYPES[decoder.dtype], "dtype of the cache", where)
        expect(cast(Tensor, new).dtype.name, TYPES[decoder.dtype], "dtype of new keys or values", where)
        found.add(name)
    expect(sorted(found), sorted(wanted), "cache tensors updated in place", "KV_CACHE_UPDATE layers")
    return len(found)


def check_attention(seen: View, decoder: Decoder) -> int:
    """One fused attention a layer, causal to the lower right up to the given lengths; returns how many."""
    layers = list(seen.of("ATTENTION_INPUT"))
    expect(len(layers), decoder.sizes.num_layers, "number of attention layers", "ATTENTION layers")
    for i, layer in enumerate(layers):
        given = cast(AttentionInput, as_class(layer, seen.trt.IAttentionInputLayer)).attention
        where = f"attention {given.name or layer.name} of layer {i}"
        expect(given.norm_op.name, "SOFTMAX", "normalisation", where)
        expect(given.decomposable, False, "attention that may fall back to single operators", where)
        if decoder.flavour == "mask":
            expect(given.causal_kind.name, "NONE", "causal kind beside a mask", where)
            expect(seen.sources(given.mask), ["kv_lengths", "position_ids"], "what the mask is made of", where)
            expect(seen.origin(given.key_value_lengths), "nothing", "lengths beside a mask", where)
        else:
            expect(given.causal_kind.name, "LOWER_RIGHT", "causal kind", where)
            expect(seen.origin(given.key_value_lengths), "kv_lengths", "key and value lengths", where)
            expect(given.mask is None, True, "attention without a mask", where)
        expect(given.query_lengths is None, True, "attention without query lengths", where)
        # The importer of standard Attention multiplies the key cache by its scale, which is 1 in our graphs.
        through = ("ELEMENTWISE", "CAST", "SHUFFLE") if decoder.flavour == "mask" else ()
        for index, kv in ((1, "k"), (2, "v")):
            source = seen.origin(given.get_input(index), through)
            expect(source, f"present_{kv}.{i}", "cache that attention reads", where)
        query = given.get_input(0)
        expect(query is not None and query.dtype.name, TYPES[decoder.dtype], "dtype of queries", where)
    return len(layers)


def check_casts(seen: View, model: onnx.ModelProto) -> dict[str, int]:
    """Float casts are those of the file, and one up and one down around each norm.

    TensorRT computes norms of 16 bit types in float32, which is what the models were trained with. Any other
    cast would change numbers or cost time.
    """
    own = {n.name: n for n in model.graph.node if n.op_type == "Cast"}
    norms = {n.name for n in model.graph.node if n.op_type in NORMS}
    readers: dict[str, list[Layer]] = {}
    for layer in seen.layers:
        for tensor in inputs(layer):
            readers.setdefault(tensor.name, []).append(layer)
    found, around = Counter[str](), Counter[tuple[str, str]]()
    for layer in seen.of("CAST"):
        (given,), (out,) = inputs(layer), outputs(layer)
        pair = f"{given.dtype.name} to {out.dtype.name}"
        if given.dtype.name == out.dtype.name or {given.dtype.name, out.dtype.name} - set(FLOATS.values()):
            continue
        if _is_number(seen.made_by.get(given.name)):
            continue  # an attribute, such as a scale, in the dtype it is used with
        found[pair] += 1
        node = own.get(_source(layer))
        if node is not None:
            to = next(a.i for a in node.attribute if a.name == "to")
            expect(out.dtype.name, FLOATS.get(to), "a cast of the file", f"cast {node.name}")
            continue
        up = FLOATS_WIDTH[out.dtype.name] > FLOATS_WIDTH[given.dtype.name]
        near = {_source(r) for r in readers.get(out.name, [])} if up else {_source(seen.made_by.get(given.name))}
        inside = near & norms
        expect(len(inside) == len(near) == 1, True, f"a cast {pair} that the file does not have", f"cast {layer.name}")
        around[inside.pop(), pair] += 1
    for (norm, pair), count in around.items():
        expect(count, 1, f"casts {pair} around a norm", f"norm {norm}")
    return dict(sorted(found.items()))


FLOATS_WIDTH: Final = {"FP8": 1, "HALF": 2, "BF16": 2, "FLOAT": 4}


def _is_number(layer: Layer | None) -> bool:
    """A constant of one element."""
    return layer is not None and layer.type.name == "CONSTANT" and all(d == 1 for d in outputs(layer)[0].shape)


def _source(layer: Layer | None) -> str:
    """The ONNX node a layer was made from; empty where the parser added it."""
    found = _SOURCE.search(layer.metadata) if layer is not None else None
    return found.group(1) if found else ""
